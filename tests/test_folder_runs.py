"""Runs over many pictures with --format: nothing that was answered is lost, asked again, or kept in memory."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
from PIL import Image
from program import PICTURE, one_line, program

from mlx_paligemma import generation
from mlx_paligemma.cli import sources
from mlx_paligemma.cli.journal import Journal
from mlx_paligemma.cli.printer import progress
from mlx_paligemma.common.errors import OptionError

PROMPT = "detect star ; heart"
PARTS_AND_WHOLE = ("parts.jsonl", "whole.jsonl")
NAMES = ["a.png", "b.png", "c.png", "d.png", "e.png"]


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the program in this process: (exit code, stdout, stderr)."""
    return program(monkeypatch, capfd)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of small pictures that all differ, which the working folder holds."""
    folder = tmp_path / "pics"
    folder.mkdir()
    for turn, name in enumerate(NAMES):
        Image.open(PICTURE).resize((96, 80)).rotate(20 * turn).save(folder / name)
    monkeypatch.chdir(tmp_path)
    return folder


def records(path, without_stats=True):
    found = [json.loads(line) for line in Path(path).read_text().splitlines()]
    for record in found:
        if without_stats:
            record.pop("stats", None)
    return found


def interrupt_after(monkeypatch, steps):
    """Ctrl-C once the model has made this many steps, of whichever answers."""
    real, made = generation.steps_of, []

    def interrupted(*arguments):
        for step in real(*arguments):
            made.append(step)
            if len(made) > steps:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(generation, "steps_of", interrupted)


def test_every_picture_is_one_line_in_order_and_stdout_stays_empty(run, pictures):
    code, out, err = run("generate", "pics", "-p", PROMPT, "--format", "json", "-o", "out/new/all.jsonl")
    assert (code, out) == (0, "")
    one_line(err, "wrote out/new/all.jsonl: 5 answers")
    assert [record["image"] for record in records("out/new/all.jsonl")] == [f"pics/{name}" for name in NAMES]


def test_json_on_stdout_is_the_same_as_in_the_file(run, pictures):
    _, out, _ = run("generate", "pics/a.png", "pics/b.png", "-p", PROMPT, "--format", "json", "-o", "all.jsonl", "--json")
    assert out == Path("all.jsonl").read_text()


def test_folders_and_patterns_stand_for_their_pictures_in_order(run, pictures):
    (pictures / "notes.txt").write_text("x")
    (pictures / "._a.png").write_bytes(b"a Mac's shadow of a file")
    (pictures / "deep").mkdir()
    (pictures / "a.png").rename(pictures / "deep" / "Z.PNG")
    (pictures / "b[1].png").write_bytes((pictures / "b.png").read_bytes())
    expected = {
        "pics": ["pics/b.png", "pics/b[1].png", "pics/c.png", "pics/d.png", "pics/e.png"],
        "pics/[cd].png": ["pics/c.png", "pics/d.png"],
        "pics/**/*.[pP][nN][gG]": ["pics/b.png", "pics/b[1].png", "pics/c.png", "pics/d.png", "pics/deep/Z.PNG", "pics/e.png"],
        "pics/b[1].png": ["pics/b[1].png"],
        f"{pictures}/d*": [f"{pictures}/d.png"],
        "https://host/*.png?x=[1]": ["https://host/*.png?x=[1]"],
    }
    assert {argument: [job.name for job in sources.separate_jobs([argument])] for argument in expected} == expected


@pytest.mark.parametrize("batch_size", [1, 2])
def test_ctrl_c_and_resume_give_what_an_uninterrupted_run_gives(run, pictures, monkeypatch, batch_size):
    arguments = ("generate", "pics", "-p", PROMPT, "--format", "json", "--batch-size", batch_size)
    run(*arguments, "-o", "whole.jsonl")
    with monkeypatch.context() as patch:
        first = [len(record["token_ids"]) for record in records("whole.jsonl")[:batch_size]]
        interrupt_after(patch, max(first) + 2)  # in the second batch
        code, _, err = run(*arguments, "-o", "parts.jsonl")
    assert code == 130
    assert err.splitlines()[-1] == "error: interrupted"
    before = records("parts.jsonl", without_stats=False)
    assert 0 < len(before) < len(NAMES)
    assert run(*arguments, "-o", "parts.jsonl", "--resume")[0] == 0
    assert records("parts.jsonl", without_stats=False)[: len(before)] == before  # kept, not asked again
    if batch_size == 1:
        assert records("parts.jsonl") == records("whole.jsonl")
    else:  # the quicker answer of the interrupted batch is kept, so that others share a batch after it
        parts, whole = (sorted((record["image"], record["text"]) for record in records(name)) for name in PARTS_AND_WHOLE)
        assert parts == whole


@pytest.mark.parametrize(("form", "target"), [("coco", "out"), ("yolo", "out/data.yaml"), ("csv", "out")])
def test_an_interrupted_run_leaves_a_whole_target_that_resume_completes(run, pictures, monkeypatch, form, target):
    arguments = ("generate", "pics", "-p", PROMPT, "--format", form)
    run(*arguments, "-o", "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 30)
        assert run(*arguments, "-o", "out")[0] == 130
    assert Path(target).exists()
    if form == "coco":
        assert 0 < len(json.loads(Path(target).read_text())["images"]) < len(NAMES)
    assert run(*arguments, "-o", "out", "--resume")[0] == 0
    places = ["."] if form != "yolo" else ["data.yaml", *(f"labels/{name[0]}.txt" for name in NAMES)]
    assert [(Path("out") / place).read_text() for place in places] == [(Path("whole") / place).read_text() for place in places]
    assert not [path for path in Path().rglob(".part*")]


def test_a_real_ctrl_c_loses_nothing_and_repeats_nothing(pictures):
    for number in range(15):
        (pictures / f"{number}.png").write_bytes((pictures / "a.png").read_bytes())
    arguments = ["generate", "pics", "-p", "caption en", "-m", "5", "--format", "json", "-o", "all.jsonl", "--resume"]
    command = [sys.executable, "-m", "mlx_paligemma", *arguments]
    home = os.environ | {"PYTHONPATH": str(Path(PICTURE).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=home) as process:
        while process.poll() is None and (not Path("all.jsonl").exists() or not Path("all.jsonl").stat().st_size):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    before = records("all.jsonl", without_stats=False)
    assert 0 < len(before) < 20
    subprocess.run(command, env=home, check=True, capture_output=True)
    after = records("all.jsonl", without_stats=False)
    assert after[: len(before)] == before
    assert sorted(record["image"] for record in after) == sorted(str(path) for path in Path("pics").iterdir())


def test_a_broken_picture_has_an_error_line_and_is_tried_again(run, pictures):
    whole = (pictures / "b.png").read_bytes()
    (pictures / "b.png").write_bytes(whole[:200])
    arguments = ("generate", "pics", "-p", PROMPT, "--format", "json", "-o", "all.jsonl", "--batch-size", 2)
    code, _, err = run(*arguments)
    assert code == 1
    assert "wrote all.jsonl: 4 answers, 1 failed" in err
    broken = records("all.jsonl")[0]  # a batch's failures come before its answers
    assert broken["image"] == "pics/b.png"
    assert "error" in broken and "text" not in broken
    assert run(*arguments, "--resume")[0] == 1
    assert len(records("all.jsonl")) == 5
    (pictures / "b.png").write_bytes(whole)
    assert run(*arguments, "--resume")[0] == 0
    found = records("all.jsonl")
    assert sorted(record["image"] for record in found) == [f"pics/{name}" for name in NAMES]
    assert not [record for record in found if "error" in record]


def test_half_a_last_line_is_dropped_and_asked_again(run, pictures):
    arguments = ("generate", "pics", "-p", PROMPT, "--format", "json", "-o", "all.jsonl")
    run(*arguments)
    whole, text = records("all.jsonl"), Path("all.jsonl").read_bytes()
    for cut in (text.rindex(b'{"image"') + 5, len(text) - 60, len(text) - 1):
        Path("all.jsonl").write_bytes(text[:cut])
        assert run(*arguments, "--resume")[0] == 0
        assert records("all.jsonl") == whole


def test_resume_asks_another_prompt_anew_and_keeps_the_first_answers(run, pictures):
    arguments = ("generate", "pics", "--format", "coco", "-o", "all.json")
    run(*arguments, "-p", "detect star")
    first = Path("all.json.jsonl").read_text()
    assert run(*arguments, "-p", "detect heart", "--resume")[0] == 0
    assert Path("all.json.jsonl").read_text().startswith(first)
    assert [record["prompt"] for record in records("all.json.jsonl")] == ["detect star"] * 5 + ["detect heart"] * 5
    assert len(json.loads(Path("all.json").read_text())["images"]) == 5


def test_a_finished_run_is_resumed_without_loading_the_model(run, pictures):
    arguments = ("generate", "pics", "-p", PROMPT, "--format", "csv", "-o", "all.csv")
    run(*arguments)
    table = Path("all.csv").read_text()
    Path("all.csv").unlink()
    assert run(*arguments, "--resume", "--model", "nowhere")[0] == 0
    assert Path("all.csv").read_text() == table


def test_results_are_never_overwritten_without_resume(run, pictures):
    for form, target in (("json", "a.jsonl"), ("coco", "a.json"), ("yolo", "set")):
        arguments = ("generate", "pics/a.png", "-p", PROMPT, "--format", form, "-o", target)
        assert run(*arguments)[0] == 0
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        code, _, err = run(*arguments)
        assert code == 2
        one_line(err, target, "--resume")
        assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_model_that_cannot_be_loaded_leaves_no_trace(run, pictures):
    assert run("generate", "pics", "-p", PROMPT, "--format", "coco", "-o", "all.json", "--model", "nowhere")[0] == 1
    assert [path.name for path in Path().iterdir()] == ["pics"]


def test_a_picture_named_twice_is_answered_once(run, pictures):
    run("generate", "pics/a.png", "pics/a.png", "-p", PROMPT, "--format", "json", "-o", "all.jsonl")
    assert len(records("all.jsonl")) == 1


@pytest.mark.parametrize("prompt", ["caption en", "answer en how many stars are there?", "ocr", "detect star", "segment heart"])
@pytest.mark.parametrize("form", ["json", "coco", "yolo", "csv"])
def test_every_kind_of_prompt_goes_into_every_format(run, pictures, prompt, form):
    assert run("generate", "pics/a.png", "-p", prompt, "--format", form, "-o", "out", "-m", 40)[0] == 0
    (record,) = records("out" if form == "json" else "out.jsonl")
    found = len(record["detections"])
    assert bool(found) == (prompt.split()[0] in ("detect", "segment"))
    match form:
        case "coco":
            assert len(json.loads(Path("out").read_text())["annotations"]) == found
        case "yolo":
            assert len(Path("out/labels/a.txt").read_text().splitlines()) == found
        case "csv":
            assert len(Path("out").read_text().splitlines()) == found + 1


def test_an_answer_about_several_pictures_fits_json_alone(run, pictures):
    arguments = ("generate", "--image", "pics/a.png", "--image", "pics/b.png", "-p", "caption en", "-o", "out", "--format")
    assert run(*arguments, "json")[0] == 0
    assert records("out")[0]["image"] == "pics/a.png, pics/b.png"
    code, _, err = run(*arguments, "coco")
    assert code == 2
    one_line(err, "--format json")


def test_masks_of_a_resumed_run_do_not_take_the_names_of_earlier_ones(run, pictures):
    other = pictures / "deep"
    other.mkdir()
    Image.open(PICTURE).save(pictures / "a.png")
    Image.open(PICTURE).save(other / "a.png")
    arguments = ("generate", "pics/a.png", "pics/deep/a.png", "-p", "segment star", "--format", "json", "-o", "out", "--masks", "m")
    run(*arguments)
    names = sorted(path.name for path in Path("m").iterdir())
    assert names == ["a-1-star.png", "a-2-1-star.png"]
    Path("out").write_text("".join(Path("out").read_text().splitlines(keepends=True)[:1]))
    (Path("m") / names[1]).unlink()
    before = (Path("m") / names[0]).stat().st_mtime_ns
    assert run(*arguments, "--resume")[0] == 0
    assert sorted(path.name for path in Path("m").iterdir()) == names
    assert (Path("m") / names[0]).stat().st_mtime_ns == before


def test_no_more_pictures_are_in_memory_than_in_two_batches(run, pictures, monkeypatch):
    real, alive, most = sources.open_image, weakref.WeakSet(), []
    monkeypatch.setattr(Image.Image, "__hash__", object.__hash__)

    def watched(*arguments, **options):
        picture = real(*arguments, **options)
        alive.add(picture)
        most.append(len(alive))
        return picture

    monkeypatch.setattr(sources, "open_image", watched)
    names = [pictures / name for name in [*NAMES, *NAMES[:3]]]
    run("generate", *names, "-p", "caption en", "--batch-size", 2, "-m", 1)
    assert len(most) == 8
    assert max(most) <= 4


def test_one_run_at_a_time_may_write(pictures):
    first, second = Journal(Path("all.jsonl")), Journal(Path("all.jsonl"))
    first.open(lambda record: True)
    first.append({"image": "a", "prompt": "p", "error": "e"})
    with pytest.raises(OptionError, match="another run"):
        second.open(lambda record: True)
    first.append({"image": "b", "prompt": "p", "error": "e"})
    first.close()
    second.open(lambda record: record["image"] == "b")
    second.append({"image": "c", "prompt": "p", "error": "e"})
    assert [record["image"] for record in second] == ["b", "c"]
    assert [path.name for path in Path().iterdir() if path.is_file()] == ["all.jsonl"]


def test_a_line_reaches_the_file_in_one_write(pictures):
    journal = Journal(Path("all.jsonl"))
    journal.open(lambda record: True)
    journal.append({"image": "a", "prompt": "p" * 100_000})
    assert Path("all.jsonl").read_bytes().endswith(b'"}\n')  # though the journal is open still


@pytest.mark.parametrize("text", ['{"info": {}}', "{}\n", "[1]\n", "GIF89a\n", '{"image": "a", "prompt": "p"\n'])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(run, pictures, text):
    Path("all.jsonl").write_text(text)
    code, _, err = run("generate", "pics", "-p", PROMPT, "--format", "json", "-o", "all.jsonl", "--resume")
    assert code == 2
    one_line(err, "line 1 of all.jsonl")
    assert Path("all.jsonl").read_text() == text


def test_the_bar_is_for_terminals_and_for_more_than_one_picture(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def shown(stream, total, wanted=True):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress(total, wanted) as advance:
            advance(total)
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm")
    assert "7/7" in shown(Terminal(), 7)
    assert shown(Terminal(), 1) == shown(Terminal(), 7, wanted=False) == shown(io.StringIO(), 7) == ""


def test_a_link_as_the_results_file_stays_a_link_and_can_be_gone_on_with(run, tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    flags = ("generate", PICTURE, "-p", "detect star", "--format", "csv", "-o", tmp_path / "link.csv")
    assert run(*flags)[0] == 0
    before = (tmp_path / "real.csv").read_text()
    assert run(*flags, "--resume")[0] == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == before


@pytest.mark.parametrize("form", ["json", "coco", "csv"])
def test_what_is_no_plain_file_is_never_replaced(run, tmp_path, form):
    os.mkfifo(tmp_path / "pipe")
    code, _, err = run("generate", PICTURE, "-p", "detect star", "--format", form, "-o", tmp_path / "pipe")
    assert code == 2
    assert "not a plain file" in err
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    "line",
    [
        '{"image": "a", "prompt": "b"}', '{"image": ["a"], "prompt": "b", "error": "c"}',
        '{"image": "a", "prompt": NaN, "error": "c"}',
        '{"image": "a", "prompt": "b", "width": 1, "height": 1, "detections": [{}]}',
    ],
)  # fmt: skip
def test_a_journal_with_a_line_that_is_no_answer_is_refused(run, tmp_path, line):
    (tmp_path / "d.csv.jsonl").write_text(f"{line}\n")
    code, _, err = run("generate", PICTURE, "-p", "detect star", "--format", "csv", "-o", tmp_path / "d.csv", "--resume")
    assert code == 2
    assert "line 1 of" in err


def test_yolo_labels_of_a_picture_are_under_its_own_name_where_it_is_free(run, tmp_path):
    names = ["a/x.png", "b/x.png", "a/x-2.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(PICTURE, tmp_path / name)
    paths = [str(tmp_path / name) for name in names]
    assert run("generate", *paths, "-p", "detect star", "--format", "yolo", "-o", tmp_path / "y")[0] == 0
    rows = list(csv.reader((tmp_path / "y" / "pictures.csv").open()))
    assert rows == [["labels", "image"], ["x.txt", paths[0]], ["x-3.txt", paths[1]], ["x-2.txt", paths[2]]]
    assert all((tmp_path / "y" / "labels" / row[0]).exists() for row in rows[1:])


def test_a_very_long_name_does_not_end_a_run(run, tmp_path):
    long = tmp_path / f"{'n' * 240}.png"
    shutil.copy(PICTURE, long)
    for form in (("--format", "yolo", "-o", tmp_path / "y"), ("-o", tmp_path / "drawn")):
        code, _, err = run("generate", long, PICTURE, "-p", "segment star", *form, "--masks", tmp_path / "m")
        assert code == 0, err
    assert len(list((tmp_path / "drawn").iterdir())) == 2
