"""Entries of log-probabilities go out with the text of their tokens, and none for text that a stop string cuts off."""

from checkpoints import tokenizer
from hypothesis import given
from hypothesis import strategies as st

from mlx_paligemma.common.decoding import Step
from mlx_paligemma.common.token_pieces import TokenPiece, TokenPieces
from mlx_paligemma.serve.logprobs import HeldLogprobs, TokenLogprob
from mlx_paligemma.serve.stops import StopStrings

TOKENS = tokenizer()
PIECES = TokenPieces(TOKENS)


def entry(text: str) -> TokenLogprob:
    return TokenLogprob(TokenPiece(text, text.encode()), -0.5)


def test_an_entry_has_the_form_of_openai():
    cat, dog = TOKENS.encode("c")[0], TOKENS.eos_token_id
    step = Step([cat], [-0.25], [0.0], [False], [False], [[dog, cat]], [[-0.125, -0.25]])
    assert TokenLogprob.of(step, PIECES).record() == {
        "token": "c", "logprob": -0.25, "bytes": [99],
        "top_logprobs": [
            {"token": "<eos>", "logprob": -0.125, "bytes": None}, {"token": "c", "logprob": -0.25, "bytes": [99]},
        ],
    }  # fmt: skip
    assert TokenLogprob.of(Step([cat], [-0.25], [0.0], [False], [False]), PIECES).record()["top_logprobs"] == []


@given(st.lists(st.text("ab;", max_size=3), max_size=12), st.lists(st.text("ab;", min_size=1, max_size=3), max_size=3))
def test_the_entries_are_those_of_the_tokens_whose_text_is_told(pieces, stops):
    """With each piece of text come the entries of all tokens that begin in it or before."""
    held, stopping, told, text = HeldLogprobs(), StopStrings(stops), [], ""
    for piece in pieces:
        held.add(piece, entry(piece))
        ready = stopping.add(piece)
        told += held.release(ready)
        text += ready
        assert [each.piece.text for each in told] == pieces_begun(pieces, len(text))
        if stopping.found:
            break
    assert not (stopping.found and held.finish(is_cut=True))
    if not stopping.found:
        told += held.finish(is_cut=False)
        assert [each.piece.text for each in told] == pieces


def pieces_begun(pieces: list[str], characters: int) -> list[str]:
    """Those that begin before so many characters of their text."""
    begins = [sum(map(len, pieces[:place])) for place in range(len(pieces))]
    return [piece for piece, begin in zip(pieces, begins, strict=True) if begin < characters]


def test_the_bytes_of_a_character_come_with_it_and_the_end_has_no_entry():
    held = HeldLogprobs()
    for byte in "\\xf0", "\\x9f", "\\x98":
        held.add("", entry(byte))
        assert held.release("") == ()
    held.add("😀", entry("\\x80"))
    assert [each.piece.text for each in held.release("😀")] == ["\\xf0", "\\x9f", "\\x98", "\\x80"]
    held.add("", None)
    assert held.finish(is_cut=False) == ()
