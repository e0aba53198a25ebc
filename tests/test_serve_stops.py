"""Stop strings in text that comes in pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_paligemma.serve.stops import StopStrings


@given(st.lists(st.text("ab;", max_size=4), max_size=12), st.lists(st.text("ab;", min_size=1, max_size=3), max_size=4))
def test_pieces_end_where_the_whole_text_has_its_first_stop(pieces, stops):
    found, text = StopStrings(stops), ""
    for piece in pieces:
        text += found.add(piece)
        if found.found:
            break
    else:
        text += found.finish()
    whole = "".join(pieces)
    ends = [end for end in range(len(whole) + 1) if any(whole[:end].endswith(stop) for stop in stops)]
    if not ends:
        assert (text, found.found) == (whole, False)
    else:
        assert found.found
        assert not any(stop in text for stop in stops)
        assert whole.startswith(text) and any(whole[len(text) :].startswith(stop) for stop in stops)


@pytest.mark.parametrize(("piece", "ready"), [("a cat", "a cat"), ("a cat ;", "a cat "), ("a cat ; d", "a cat ; d")])
def test_text_is_held_back_only_while_it_may_become_a_stop(piece, ready):
    assert StopStrings([";;"]).add(piece) == ready
