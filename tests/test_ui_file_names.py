"""No two pictures have the same name, and every name can be saved."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_paligemma.ui.file_names import plain_stem, unique_names


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["a.png", "b.png"], ["a.png", "b.png"]),
        (["a.png", "a.png", "a.png"], ["a.png", "a-2.png", "a-3.png"]),
        (["a.png", "a.png", "a-2.png"], ["a.png", "a-3.png", "a-2.png"]),  # a-2.png is the name of another
        (["a.png", "a.png", "A-2.png"], ["a.png", "a-3.png", "A-2.png"]),
        (["a.png", "A.PNG"], ["a.png", "A-2.PNG"]),
        (["a.png", "a.jpg"], ["a.png", "a.jpg"]),
        (["a", "a"], ["a", "a-2"]),
        ([], []),
    ],
)
def test_the_first_keeps_its_name_and_none_takes_that_of_another(names, wanted):
    assert unique_names(names) == wanted


@given(st.lists(st.sampled_from(["a.png", "A.png", "a-2.png", "a-2-2.png", "b", "b-2", "-2", "a-3.png"]), max_size=12))
def test_no_two_names_are_one_file_on_any_disk(names):
    found = unique_names(names)
    assert len({name.casefold() for name in found}) == len(names)
    firsts = [index for index, name in enumerate(names) if name.casefold() not in [other.casefold() for other in names[:index]]]
    assert [found[index] for index in firsts] == [names[index] for index in firsts]


def test_a_stem_has_letters_and_digits_of_any_script():
    assert plain_stem("Übung 1 (neu).jpeg") == "Übung-1-neu"
    assert plain_stem("猫.png") == "猫"
    assert plain_stem("???.png") == "picture"
