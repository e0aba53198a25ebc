"""The web page as its visitors have it: headless Chromium drops pictures, asks, stops, swaps models, and looks."""

import json
import re
import shutil
import threading
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from browsing import DEMO, SHAPES, answer_of, ask, chromium, showing, tab, upload, visiting, write
from PIL import Image
from serving import LONG, slowed, until

from mlx_paligemma import generate, load
from mlx_paligemma.common.hub import bundled_checkpoint
from mlx_paligemma.ui import shelf as shelf_module
from mlx_paligemma.ui.model_spec import ModelSpec

MARKUP = "<img src=x onerror=alert(1)> **bold** ${alert(2)} {{value}} `code` $$x$$"
WINDOWS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def shown(browser, tmp_path_factory):
    with showing(tmp_path_factory.mktemp("page")) as made:
        yield made


@pytest.fixture
def page(browser, shown):
    with visiting(browser, shown) as made:
        yield made


@pytest.fixture(scope="module")
def demo():
    return load()


def single(demo, prompt, picture=SHAPES):
    return generate(*demo, picture, prompt, max_tokens=256)


def downloaded(page, place: str, name: str) -> bytes:
    with page.expect_download() as download:
        page.locator(f"{place} a[download='{name}']").click()
    return Path(download.value.path()).read_bytes()


def test_the_answer_is_seen_growing(page, shown, demo):
    upload(page, SHAPES)
    write(page, "Segment", "circle ; heart ; star")
    states = []
    with slowed(shown):
        page.locator("#ask").click()
        page.locator("#stop:enabled").wait_for()
        while page.locator("#stop").is_enabled():
            states.append(page.locator("#answer textarea").input_value())
    states.append(answer_of(page))
    assert states[-1] == single(demo, LONG).text
    assert all(states[-1].startswith(state) for state in states)
    assert len(set(states) - {"", states[-1]}) >= 2


def test_boxes_masks_table_and_downloads_are_those_of_the_answer(page, demo):
    upload(page, SHAPES)
    expected = single(demo, "segment heart ; star")
    assert ask(page, "Segment", "heart ; star") == expected.text
    assert page.locator("#found .legend").inner_text().split("\n") == ["heart 0.95", "star 0.99"]
    assert page.locator("#found img.mask").count() == 2
    assert [row.split("\t")[1] for row in page.locator("#objects tbody").inner_text().split("\n")] == ["heart", "star"]
    assert page.locator("#line").inner_text().startswith("2 objects, 44 tokens")
    record = json.loads(downloaded(page, "#files", "shapes.json"))
    assert [found["box"] for found in record["detections"]] == [list(item.box) for item in expected.detections]
    assert len(json.loads(downloaded(page, "#files", "shapes-coco.json"))["annotations"]) == 2
    assert Image.open(BytesIO(downloaded(page, "#files", "shapes-drawn.png"))).size == Image.open(SHAPES).size
    with zipfile.ZipFile(BytesIO(downloaded(page, "#files", "shapes-masks.zip"))) as masks:
        read = [np.array(Image.open(masks.open(name))) > 0 for name in sorted(masks.namelist())]
    assert all(np.array_equal(mask, item.mask) for mask, item in zip(read, expected.detections, strict=True))


def test_stop_keeps_what_there_is_and_says_so(page, shown, demo):
    upload(page, SHAPES)
    write(page, "Segment", "circle ; heart ; star")
    with slowed(shown, 0.1):
        page.locator("#ask").click()
        page.wait_for_function("document.querySelector('#answer textarea').value.length > 30")
        page.locator("#stop").click()
        page.locator("#line").get_by_text("stopped").wait_for()
    text, whole = page.locator("#answer textarea").input_value(), single(demo, LONG).text
    assert text and text != whole and whole.startswith(text)
    until(lambda: shown.engine.decoding == 0)
    assert page.locator("#stop").is_disabled() and page.locator("#ask").is_enabled()


@pytest.mark.parametrize("by", ["pointer", "keyboard"])
def test_the_slider_hides_objects_of_lower_scores(page, by):
    upload(page, SHAPES)
    ask(page, "Segment", "heart ; star")
    if by == "keyboard":
        page.get_by_label("range slider for Minimum score").press("End")
        page.get_by_label("range slider for Minimum score").press("ArrowLeft")
        page.get_by_label("range slider for Minimum score").press("ArrowLeft")  # 0.98
    else:
        slider = page.get_by_label("range slider for Minimum score")
        slider.click(position={"x": 0.96 * slider.bounding_box()["width"], "y": 4})
    page.locator("#found .legend").get_by_text("heart").wait_for(state="detached")
    page.wait_for_function("document.querySelectorAll('#objects tbody tr').length == 1")
    assert "star" in page.locator("#objects tbody").inner_text()
    until(lambda: page.wait_for_timeout(50) or len(json.loads(downloaded(page, "#files", "shapes.json"))["detections"]) == 1)


def test_several_questions_are_kept_and_the_picture_is_encoded_once(page, shown):
    upload(page, SHAPES)
    before = len(shown.site.shelf.get().features)
    assert ask(page, "Question", "what color is the star?") == "green"
    with page.expect_response(re.compile("queue/join")):
        ask(page, "Caption")
    page.get_by_role("button", name="Earlier questions").click()
    page.locator("#asked").get_by_text("caption en").wait_for()
    prompts = page.locator("#asked tbody td:first-child").all_inner_texts()
    assert prompts == ["caption en", "answer en what color is the star?"]
    assert len(shown.site.shelf.get().features) <= before + 1


def test_an_example_fills_the_fields_and_asks(page):
    page.get_by_text("what color is the star?").click()
    assert answer_of(page) == "green"
    assert page.locator("#ask-text textarea").input_value() == "what color is the star?"
    assert page.locator(".prompt").first.inner_text() == "Prompt: answer en what color is the star?"


def test_the_keyboard_alone_is_enough(page):
    with page.expect_file_chooser() as chooser:
        tab_to(page, "Drop an image file here to upload")
        page.keyboard.press("Enter")
    chooser.value.set_files(SHAPES)
    page.locator(".picture img >> visible=true").wait_for()
    tab_to(page, "Question")
    page.keyboard.press("Space")
    page.locator("#ask-text textarea").wait_for()
    tab_to(page, "Question", "TEXTAREA")
    page.keyboard.type("what color is the star?")
    page.keyboard.press("Enter")
    assert answer_of(page) == "green"


def tab_to(page, name: str, kind: str = "") -> None:
    """Press Tab until something of this name has the focus; all that has it on the way shows it."""
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        assert focused["shown"], focused
        if focused["name"] == name and focused["kind"].startswith(kind):
            return
    raise AssertionError(f"Tab does not come to {name}")


FOCUSED = """() => {
  const at = document.activeElement, label = at.closest('label');
  const shown = part => part && getComputedStyle(part).outlineStyle != 'none';
  const name = at.getAttribute('aria-label') || label?.innerText || at.innerText || '';
  const edge = ['BODY', 'TEXTAREA'].includes(at.tagName) || at.type == 'text';
  return {name: name.trim(), kind: at.tagName, shown: edge || shown(at) || shown(label) || false};
}"""


def test_without_a_picture_or_a_text_a_line_says_what_to_do(page):
    page.locator("#ask").click()
    page.locator("#line").get_by_text("there is no picture yet").wait_for()
    upload(page, SHAPES)
    write(page, "Detect")
    page.locator("#ask").click()
    page.locator("#line").get_by_text("write what to look for").wait_for()
    assert page.locator("#ask").is_enabled()


def test_what_is_no_picture_is_told_and_not_taken(page, tmp_path):
    (tmp_path / "a <b>b.png").write_bytes(SHAPES.read_bytes()[:300])
    upload(page, tmp_path / "a <b>b.png")
    page.locator(".toast-body").get_by_text("is damaged or cut short").wait_for()
    assert page.locator(".toast-body b").count() == 0
    page.locator(".picture input[type=file] >> nth=0").wait_for(state="attached")


def test_a_bad_file_and_a_phones_picture_are_taken_as_such_also_after_another(page, tmp_path):
    """Gradio makes a component anew where it was changed, without what was set on it."""
    import pillow_heif

    (tmp_path / "bad.png").write_text("no picture")
    pillow_heif.from_pillow(Image.open(SHAPES).convert("RGB")).save(tmp_path / "phone.heic", quality=95)
    page.locator(".gallery-item, .tr-body").first.click()  # an example: the component is changed
    answer_of(page)
    clear = page.locator(".picture >> visible=true").get_by_label("Remove Image")
    clear.click()
    upload(page, tmp_path / "bad.png")
    page.get_by_text("not a picture that can be read").first.wait_for()
    clear.wait_for(state="detached")
    for file, kind, color in ((SHAPES, "star", "green"), (tmp_path / "phone.heic", "heart", "pink")):
        upload(page, file)
        clear.wait_for()
        write(page, "Question", f"what color is the {kind}?")
        page.locator("#ask").click()
        until(lambda color=color: page.locator("#answer textarea").input_value() == color)
        clear.click()
        clear.wait_for(state="detached")


def test_markup_of_others_is_shown_as_text(page):
    upload(page, SHAPES)
    write(page, "Free prompt", MARKUP)
    page.locator(".prompt").first.get_by_text(f"Prompt: {MARKUP}").wait_for()
    ask(page, "Free prompt", MARKUP)
    page.get_by_role("button", name="Earlier questions").click()
    assert page.locator("#asked td").first.inner_text() == MARKUP
    tab(page, "Model")
    page.locator("#model-main input").fill(MARKUP)
    page.keyboard.press("Enter")
    page.locator("#load-main").click()
    page.locator("#status-main").get_by_text(f"{MARKUP}: no such folder").wait_for()
    assert MARKUP in page.locator(".toast-body").inner_text()
    assert page.locator("img[src=x]").count() == 0


def test_the_line_on_top_names_the_model_after_each_swap(page, shown, tmp_path):
    shutil.copytree(bundled_checkpoint(), tmp_path / "second")
    try:
        page.get_by_role("button", name="Options").click()
        page.get_by_label("torch", exact=True).locator("visible=true").check()
        page.locator("#loaded").get_by_text("demo · torch · float32").wait_for()
        upload(page, SHAPES)
        assert ask(page, "Question", "what color is the star?") == "green"
        load_model(page, tmp_path / "second")
        page.locator("#status-main").get_by_text("second: ready").wait_for()
        page.locator("#loaded").get_by_text("second · mlx").wait_for()
        load_model(page, "/nowhere/model")
        page.locator("#status-main").get_by_text("/nowhere/model: no such folder").wait_for()
        assert "second" in page.locator("#loaded").inner_text()
    finally:
        list(shown.site.shelf.load(ModelSpec()))


def load_model(page, name) -> None:
    tab(page, "Model")
    page.locator("#model-main input").fill(str(name))
    page.keyboard.press("Enter")
    page.locator("#load-main").click()


def test_of_two_swaps_at_once_one_is_told_to_wait(page, browser, shown, monkeypatch):
    loaded = threading.Event()

    def waiting(*arguments):
        assert loaded.wait(30)
        return load_runner(*arguments)

    load_runner = shelf_module.load_runner
    monkeypatch.setattr(shelf_module, "load_runner", waiting)
    with visiting(browser, shown) as other:
        try:
            load_model(page, "demo")
            page.locator("#status-main").get_by_text("demo: loading").wait_for()
            load_model(other, "demo")
            other.locator("#status-main").get_by_text("another model is being loaded").wait_for()
        finally:
            loaded.set()
        page.locator("#status-main").get_by_text("demo: ready").wait_for()


def test_many_pictures_make_a_zip_and_a_broken_one_a_line_in_it(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    tab(page, "Many pictures")
    upload(page, SHAPES, tmp_path / "broken.png", DEMO / "crosses.png", place="#batch-files")
    write(page, "Detect", "star", name="batch")
    page.locator("#batch-run").click()
    page.locator("#batch-zip a").wait_for()
    assert page.locator("#batch-line").inner_text() == "2 of 3 answered, 1 failed"
    with zipfile.ZipFile(BytesIO(downloaded(page, "#batch-zip", "answers.zip"))) as answers:
        lines = [json.loads(line) for line in answers.read("answers.jsonl").splitlines()]
        assert {"coco.json", "objects.csv", "drawn/shapes.png", "drawn/crosses.png"} <= set(answers.namelist())
    assert [line["image"] for line in lines] == ["shapes.png", "broken.png", "crosses.png"]
    assert ["error" in line for line in lines] == [False, True, False]


def test_both_backends_are_compared_and_answer_the_same(page):
    tab(page, "Compare")
    page.get_by_label("torch", exact=True).locator("visible=true").check()
    page.locator("#load-second").click()
    page.locator("#status-second").get_by_text("ready").wait_for()
    upload(page, SHAPES)
    write(page, "Segment", "star", name="compare")
    page.locator("#compare").click()
    page.locator("#compare-line").get_by_text("The two answers are the same.").wait_for()
    assert page.get_by_text("demo · torch · float32").is_visible() and page.get_by_text("demo · mlx · float32").last.is_visible()
    texts = [page.locator(f"#answer-{side} textarea").input_value() for side in ("main", "second")]
    assert texts[0] == texts[1] and texts[0].endswith("star")


def test_visitors_do_not_see_each_other(page, browser, shown):
    with visiting(browser, shown) as other:
        for visitor, question in ((page, "what color is the star?"), (other, "what color is the heart?")):
            upload(visitor, SHAPES)
            write(visitor, "Question", question)
        page.locator("#ask").click()
        assert answer_of(page) == "green"
        assert other.locator("#answer textarea").input_value() == ""
        other.locator("#ask").click()
        assert (answer_of(other), answer_of(page)) == ("pink", "green")
        for visitor, question in ((page, "star"), (other, "heart")):
            visitor.get_by_role("button", name="Earlier questions").click()
            assert visitor.locator("#asked tbody td:first-child").all_inner_texts() == [f"answer en what color is the {question}?"]


def test_a_visitor_who_closes_the_page_frees_its_place(browser, shown):
    with slowed(shown, 0.3):
        with visiting(browser, shown) as leaving:
            upload(leaving, SHAPES)
            write(leaving, "Segment", "circle ; heart ; star")
            leaving.locator("#ask").click()
            until(lambda: shown.engine.decoding == 1)
        until(lambda: shown.engine.decoding == 0, 10)


@pytest.fixture
def kept(request):
    """kept(page, name): a picture of the page, where pictures are wanted."""
    folder = request.config.getoption("--screenshots")
    return lambda page, name: folder and page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


CONTRAST = """place => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  let under = place, back = [0, 0, 0, 0];
  for (; under; under = under.parentElement) {
    back = numbers(getComputedStyle(under).backgroundColor);
    if (back.length == 3 || back[3] > .99) break;
  }
  const [a, b] = [light(numbers(getComputedStyle(place).color)), light(back)].sort((a, b) => b - a);
  return (a + .05) / (b + .05);
}"""  # WCAG 2.2, relative luminance and contrast ratio


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
def test_it_fits_the_window_and_can_be_read(browser, shown, kept, request, window, scheme):
    if not request.config.getoption("--full") and (window, scheme) not in (("desktop", "light"), ("phone", "dark")):
        pytest.skip("two of four are enough each time; --full runs all")
    with visiting(browser, shown, *WINDOWS[window], scheme) as page:
        kept(page, f"{window}-{scheme}-empty")
        upload(page, SHAPES)
        ask(page, "Segment", "heart ; star")
        page.mouse.move(0, 0)  # a button under the pointer has another colour
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(400)
        seen = ["#loaded p", "#line p", "#answer textarea", "#objects td", "#ask", "#ask-task label", "#ask-task span", "#files a"]
        for place in seen:
            assert page.locator(place).first.evaluate(CONTRAST) >= 4.5, place
        for name in ("Ask", "Many pictures", "Compare", "Model"):
            tab(page, name)
            page.wait_for_timeout(200)
            kept(page, f"{window}-{scheme}-{name.split()[0].lower()}")
            assert page.evaluate("document.documentElement.scrollWidth") <= WINDOWS[window][0], name
