"""A label is one line in letters that the font has, with its score while there is room."""

import pytest
from PIL import ImageFont

from mlx_paligemma.common.label_text import label_font, label_texts
from mlx_paligemma.common.results import Detection

OWN = ("Aileron", "Regular")  # the font inside Pillow


@pytest.fixture
def own_font():
    return label_font(["cat"], 12)


@pytest.fixture
def bare_system(monkeypatch):
    """A machine without fonts."""

    def refuse(font, *_args, **_options):
        if isinstance(font, str):
            raise OSError("cannot open resource")
        return truetype(font, *_args, **_options)

    truetype = ImageFont.truetype
    monkeypatch.setattr(ImageFont, "truetype", refuse)


def test_the_longest_text_comes_first_and_the_score_goes_before_letters_do(own_font):
    assert [*label_texts(Detection("bird", (0, 0, 1, 1), 0.876), own_font)] == ["bird 0.88", "bird", "bir…", "bi…"]
    assert [*label_texts(Detection("cat", (0, 0, 1, 1)), own_font)] == ["cat", "ca…"]
    assert [*label_texts(Detection("", (0, 0, 1, 1), 0.5), own_font)] == ["0.50"]
    assert [*label_texts(Detection("", (0, 0, 1, 1)), own_font)] == []


def test_a_label_is_one_line_without_control_characters(own_font):
    first = next(label_texts(Detection(" a\n b\t\x00\x1bc\udcff ", (0, 0, 1, 1)), own_font))
    assert first == "a b c"


def test_a_label_without_end_is_cut(own_font):
    assert next(label_texts(Detection("word " * 10_000, (0, 0, 1, 1)), own_font)) == " ".join(["word"] * 20) + "…"


def test_ascii_labels_have_the_same_font_on_every_machine(bare_system):
    assert label_font(["cat", "dog"], 12).getname() == OWN
    assert label_font([], 12).getname() == OWN


def test_without_a_font_for_them_accents_are_taken_off(bare_system):
    font = label_font(["été"], 12)
    assert font.getname() == OWN
    assert next(label_texts(Detection("Äpfel im été ½", (0, 0, 1, 1)), font)) == "Apfel im ete 1?2"
    assert next(label_texts(Detection("猫 cat", (0, 0, 1, 1)), font)) == "? cat"


def test_a_system_font_writes_what_pillows_own_cannot():
    font = label_font(["été"], 12)
    if font.getname() == OWN:
        pytest.skip("this machine has none of the fonts that are tried")
    assert next(label_texts(Detection("été", (0, 0, 1, 1)), font)) == "été"
    assert font.size == 12
