"""The prompts are those that the released models were trained on."""

from mlx_paligemma.common import prompt


def test_prompts_are_the_trained_ones():
    assert prompt.caption() == "caption en"
    assert prompt.caption("de") == "caption de"
    assert prompt.ocr() == "ocr"
    assert prompt.answer("what is it?") == "answer en what is it?"
    assert prompt.answer("Was ist das?", "de") == "answer de Was ist das?"
    assert prompt.detect("cat") == "detect cat"
    assert prompt.segment("cat") == "segment cat"


def test_things_are_separated_by_a_semicolon_between_spaces():
    assert prompt.detect("cat", "dog") == "detect cat ; dog"
    assert prompt.segment("cat", "red dog", "egg") == "segment cat ; red dog ; egg"
