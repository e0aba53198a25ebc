"""A token by itself: its name and its bytes, for every token of every vocabulary."""

import pytest
from checkpoints import tokenizer
from vocabularies import FRAGMENTS, NAMES, model_of

from mlx_paligemma.common.token_pieces import TokenPiece, TokenPieces
from mlx_paligemma.common.tokenizer import PaliGemmaTokenizer


@pytest.fixture(scope="module", params=NAMES)
def vocabulary(request):
    made = PaliGemmaTokenizer(model_of(request.param))
    return made, TokenPieces(made)


@pytest.mark.parametrize("text", FRAGMENTS)
def test_the_bytes_of_the_tokens_are_those_of_the_text(vocabulary, text):
    made, pieces = vocabulary
    ids = made.encode(text)
    assert b"".join(pieces[token].data for token in ids) == made.decode(ids).encode()


def test_every_token_that_stands_for_text_has_bytes_and_no_other_has(vocabulary):
    made, pieces = vocabulary
    visible = set(made.visible(range(made.size)))
    assert all((pieces[token].data is not None) == (token in visible) for token in range(-1, made.size + 1))


def test_whole_text_is_its_own_name(vocabulary):
    made, pieces = vocabulary
    for text in (" ", "\n", "<loc0007>", "<seg127>"):
        assert [pieces[token] for token in made.encode(text)] == [TokenPiece(text, text.encode())]


def test_bytes_control_pieces_and_what_is_no_piece_have_names_too():
    made = tokenizer()
    pieces = TokenPieces(made)
    assert pieces[made.encode("\x00")[0]] == TokenPiece("\x00", b"\x00")
    assert [pieces[token].text for token in made.encode("😀")] == ["\\xf0", "\\x9f", "\\x98", "\\x80"]
    assert pieces[made.eos_token_id] == TokenPiece("<eos>", None)
    assert pieces[made.size] == TokenPiece(f"<id{made.size}>", None)
    assert pieces[-1] == TokenPiece("<id-1>", None)
