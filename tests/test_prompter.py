"""Lines typed into `chat`: answers on stdout, everything else on stderr, and one line for what is wrong."""

import json

import pytest
from conversations import conversation, picture_file

from mlx_paligemma.cli.prompter import HELP, Prompter


@pytest.fixture
def obey(tmp_path, capsys):
    """Obey lines in a folder with picture.png: (stdout, stderr)."""

    def call(*lines, **options):
        prompter = options.pop("prompter", None) or Prompter(conversation(picture_file(tmp_path))[0], **options)
        for line in lines:
            prompter.obey(line)
        return capsys.readouterr()

    return call


def error(err, *words):
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


def test_an_answer_is_one_line_on_stdout_and_nothing_on_stderr(obey):
    assert obey("caption en", "segment cat") == ("caption en\nsegment cat\n", "")


def test_an_error_is_one_line_and_the_next_prompt_is_answered(obey):
    out, err = obey("", "caption en")
    assert out == "caption en\n"
    error(err, "empty")


def test_an_answer_that_fails_halfway_ends_its_line(obey):
    out, err = obey("break here", "caption en")
    assert out == "break\ncaption en\n"
    error(err, "not finite")


def test_a_stopped_answer_ends_its_line_and_is_marked_in_the_history(obey):
    out, err = obey("stop here", "caption en", "/history")
    assert out == "stop\ncaption en\n"
    lines = err.splitlines()
    assert lines[0] == "stopped"
    assert [lines[1].endswith(": stop here"), lines[2]] == [True, "   stop (stopped)"]
    assert [lines[3].endswith(": caption en"), lines[4]] == [True, "   caption en"]


@pytest.mark.parametrize("line", ["/frob", "/", "/Image x", "/imagex"])
def test_an_unknown_command_is_no_prompt(obey, line):
    out, err = obey(line)
    assert out == ""
    error(err, line.split()[0], "/help")


def test_help_names_every_command(obey):
    assert obey("/help") == ("", HELP + "\n")
    for word in ("/image", "/save", "/history", "/clear", "/stats", "/help", "/quit"):
        assert word in HELP
        assert "no command" not in obey(word)[1]


def test_quit_ends_it_and_nothing_else_does(tmp_path, obey):
    prompter = Prompter(conversation(picture_file(tmp_path))[0])
    obey("caption en", "/frob", "/clear", prompter=prompter)
    assert not prompter.is_over
    obey("/quit", prompter=prompter)
    assert prompter.is_over


def test_a_wrong_path_keeps_the_old_picture(tmp_path, obey):
    talk, model = conversation(picture_file(tmp_path))
    before = talk.view
    out, err = obey("/image missing.png", "caption en", prompter=Prompter(talk))
    error(err, "missing.png", "no such file")
    assert out == "caption en\n"
    assert model.asked[0][0] is before.picture


@pytest.mark.parametrize(
    "typed", ["{}/my red.png", "'{}/my red.png'", '"{}/my red.png"', r"{}/my\ red.png", "  {}/my red.png", "~/my red.png"]
)
def test_a_path_may_be_typed_or_dropped_on_the_terminal(tmp_path, obey, monkeypatch, typed):
    monkeypatch.setenv("HOME", str(tmp_path))
    picture_file(tmp_path, "my red.png", "red")
    talk, model = conversation(picture_file(tmp_path))
    assert obey(f"/image {typed.format(tmp_path)}", "caption en", prompter=Prompter(talk)) == ("caption en\n", "")
    assert model.asked[0][0].getpixel((0, 0)) == (255, 0, 0)


def test_image_alone_says_which_picture_it_is(tmp_path, obey):
    assert f"{tmp_path / 'picture.png'}, 100 x 50 pixels" in obey("/image")[1]
    assert "/image PATH" in obey("/image", prompter=Prompter(conversation(None)[0]))[1]


def test_saving_says_where_and_what_cannot_be_saved_is_one_line(tmp_path, obey):
    picture = tmp_path / "picture.png"
    before = picture_file(tmp_path).read_bytes()
    for line, word in (
        ("/save", "/save answer.png"),
        (f"/save {picture}", "not overwritten"),
        (f"/save {tmp_path / 'a.txt'}", ".png"),
        (f"/save {tmp_path / 'none' / 'a.png'}", "No such file"),
        (f"/save {tmp_path / 'none' / 'a.json'}", "No such file"),
        ("/save a\0b.png", "null"),
    ):
        error(obey("segment cat", line)[1], word)
    assert picture.read_bytes() == before
    assert obey("segment cat", f"/save '{tmp_path}/my drawing.png'")[1] == f"wrote {tmp_path}/my drawing.png\n"
    assert (tmp_path / "my drawing.png").exists()
    obey("segment cat", f"/save {tmp_path / 'talk.json'}")
    assert [record["prompt"] for record in json.loads((tmp_path / "talk.json").read_text())] == ["segment cat"]


def test_stats_tell_that_the_second_question_skips_the_vision_tower(obey):
    _, err = obey("caption en", "/stats", "answer en what?", "/stats")
    first, second = err.splitlines()
    assert first == "Picture encoded: yes. First token after 0.250 s. Tokens: 2, 40.0 tokens/s."
    assert second.startswith("Picture encoded: no (cached).")


def test_verbose_says_the_same_after_every_answer(obey):
    out, err = obey("caption en", "answer en what?", verbose=True)
    assert out == "caption en\nanswer en what?\n"
    assert [line.split(". ")[0] for line in err.splitlines()] == ["Picture encoded: yes", "Picture encoded: no (cached)"]


def test_a_note_is_said_once(obey):
    assert obey("note this", "note that")[1] == "note: a note\n"


def test_on_a_terminal_boxes_are_said_in_pixels(obey):
    out, err = obey("segment cat", is_terminal=True)
    assert out == "segment cat\n"
    assert err == "  cat: from (10, 20) to (60, 40), score 0.50, with mask\n"


def test_clear_forgets_the_questions(obey):
    assert obey("caption en", "/clear", "/history")[1] == "Nothing was asked yet.\n"
    error(obey("caption en", "/clear", "/stats")[1], "nothing was asked")
