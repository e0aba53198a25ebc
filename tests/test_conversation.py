"""What is kept of questions and answers, and what can be saved of them without losing a picture."""

import json
import os
from pathlib import Path

import pytest
from conversations import conversation, picture_file
from PIL import Image

from mlx_paligemma.cli.conversation import View
from mlx_paligemma.common.errors import ImageError, NumericError, OptionError, PromptError


def quiet(text):
    """Show nothing."""


def test_text_is_shown_as_it_grows_and_kept_whole(tmp_path):
    talk, _ = conversation(picture_file(tmp_path))
    shown = []
    answer = talk.ask("a b c", shown.append)
    assert shown == ["a", " b", " c"]
    assert (answer.result.text, answer.result.finish_reason) == ("a b c", "stop")
    assert [record["text"] for record in talk.records] == ["a b c"]


def test_an_interrupted_answer_is_kept_as_cancelled_with_what_came_so_far(tmp_path):
    talk, _ = conversation(picture_file(tmp_path))
    answer = talk.ask("stop here now", quiet)
    assert (answer.result.text, answer.result.finish_reason) == ("stop", "cancelled")
    assert [(record["text"], record["finish_reason"]) for record in talk.records] == [("stop", "cancelled")]


def test_a_failed_answer_is_not_kept_and_the_next_one_is(tmp_path):
    talk, _ = conversation(picture_file(tmp_path))
    with pytest.raises(NumericError):
        talk.ask("break here", quiet)
    assert (talk.records, talk.last) == ([], None)
    assert talk.ask("well", quiet).result.text == "well"


def test_without_a_picture_the_way_to_one_is_said():
    talk, model = conversation(None)
    with pytest.raises(PromptError, match="/image"):
        talk.ask("caption en", quiet)
    assert not model.asked


def test_a_picture_counts_as_encoded_for_its_first_question_alone(tmp_path):
    talk, _ = conversation(picture_file(tmp_path))
    seen = [talk.ask(prompt, quiet).was_encoded for prompt in ("a", "b")]
    talk.view = View.of(str(picture_file(tmp_path, "other.png", "red")))
    seen += [talk.ask(prompt, quiet).was_encoded for prompt in ("a", "b")]
    assert seen == [True, False, True, False]


def test_forgetting_keeps_the_picture(tmp_path):
    talk, _ = conversation(picture_file(tmp_path))
    talk.ask("segment cat", quiet)
    talk.forget()
    assert (talk.records, talk.last) == ([], None)
    assert not talk.ask("a", quiet).was_encoded


def test_the_last_answer_is_drawn_onto_its_own_picture_also_after_another_was_chosen(tmp_path):
    talk, _ = conversation(picture_file(tmp_path))
    talk.ask("segment cat", quiet)
    talk.view = View.of(str(picture_file(tmp_path, "other.png", "red")))
    talk.save(tmp_path / "drawn.png")
    drawn = Image.open(tmp_path / "drawn.png")
    assert drawn.getpixel((90, 45)) == (128, 128, 128)  # outside the box: the gray picture
    assert drawn.getpixel((50, 35)) != (128, 128, 128)  # inside the mask


@pytest.mark.parametrize("name", ["picture.png", "./picture.png", "link.png", "hard.png", "PICTURE.json"])
def test_the_picture_itself_is_never_overwritten_by_whatever_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    picture = picture_file(tmp_path)
    before = picture.read_bytes()
    (tmp_path / "link.png").symlink_to(picture)
    os.link(picture, tmp_path / "hard.png")
    os.link(picture, tmp_path / "PICTURE.json")
    talk, _ = conversation(picture)
    talk.ask("segment cat", quiet)
    talk.view = View.of(str(picture_file(tmp_path, "other.png", "red")))  # nor is one of earlier questions
    for target in (name, "other.png"):
        with pytest.raises(OptionError, match="not overwritten"):
            talk.save(Path(target))
    assert picture.read_bytes() == before


@pytest.mark.parametrize("name", ["a.txt", "a", "a.xbm", "a.jpg.zip"])
def test_an_ending_without_a_picture_format_is_refused_and_leaves_no_file(tmp_path, name):
    talk, _ = conversation(picture_file(tmp_path))
    talk.ask("segment cat", quiet)
    with pytest.raises(OptionError, match=r"\.png"):
        talk.save(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_there_is_nothing_to_save_before_a_question_and_nothing_to_draw_without_boxes(tmp_path):
    talk, _ = conversation(picture_file(tmp_path))
    for name in ("a.png", "a.json"):
        with pytest.raises(OptionError, match="no"):
            talk.save(tmp_path / name)
    talk.ask("caption en", quiet)
    with pytest.raises(OptionError, match="no boxes"):
        talk.save(tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_the_conversation_is_saved_as_a_json_list_of_the_records_of_generate(tmp_path):
    talk, _ = conversation(picture_file(tmp_path))
    for prompt in ("segment cat", "answer en größe?", "stop now"):
        talk.ask(prompt, quiet)
    talk.save(tmp_path / "talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert [record["prompt"] for record in saved] == ["segment cat", "answer en größe?", "stop now"]
    assert [record["finish_reason"] for record in saved] == ["stop", "stop", "cancelled"]
    assert saved[0]["image"] == str(tmp_path / "picture.png")
    assert saved[0]["detections"][0]["label"] == "cat"
    assert saved[0]["detections"][0]["mask"]["size"] == [50, 100]


def test_a_view_is_one_picture(tmp_path):
    for name in ("a.png", "b.png"):
        picture_file(tmp_path, name)
    assert View.of(str(tmp_path / "a*")).picture.size == (100, 50)
    with pytest.raises(OptionError, match="2 pictures"):
        View.of(str(tmp_path))
    with pytest.raises(ImageError):
        View.of(str(tmp_path / "missing.png"))
