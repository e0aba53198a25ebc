"""A list of merges and the scores of pieces say the same: what SentencePiece makes of one, tokenizers makes of the other."""

import itertools
import json
import random

import pytest
from sentencepiece import SentencePieceProcessor

from mlx_paligemma.common.bpe_merges import merges_of_scores, scores_of_merges
from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.sentencepiece_proto import Kind, Piece, write_model

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install -e '.[dev]'")
SPECIAL = [Piece(text, 0.0, Kind.CONTROL) for text in ("<pad>", "<eos>", "<bos>")] + [Piece("<unk>", 0.0, Kind.UNKNOWN)]
BYTES = [Piece(f"<0x{value:02X}>", 0.0, Kind.BYTE) for value in range(256)]
KINDS = {"a": Kind.NORMAL, "b": Kind.NORMAL, "ab": Kind.NORMAL, "ba": Kind.NORMAL, "aba": Kind.NORMAL}
KINDS |= {"aa": Kind.USER_DEFINED, "<0x41>": Kind.BYTE}
WHOLE = ["a b", "b a", "ab a", "a ba"]


def pieces_of(words):
    """A vocabulary of two characters and words, the first word the best."""
    characters = [Piece(character, 0.0, Kind.NORMAL) for character in "ab"]
    return [*SPECIAL, *BYTES, *characters, *(Piece(word, -float(rank), Kind.NORMAL) for rank, word in enumerate(words))]


def bpe(pieces, merges):
    model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": {p.text: i for i, p in enumerate(pieces)}}
    return tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": model | {"merges": merges}}))


def test_pieces_in_any_order_give_the_same_ids_by_their_scores_and_by_their_merges():
    rng = random.Random(0)
    words = ["".join(word) for length in (2, 3, 4, 5) for word in itertools.product("ab", repeat=length)]
    for _ in range(60):
        pieces = pieces_of(rng.sample(words, rng.randrange(3, len(words))))
        rng.shuffle(pieces)  # so that the order of ids is another than that of scores
        merges = merges_of_scores(pieces, [piece.text for piece in pieces])
        by_scores, by_merges = SentencePieceProcessor(model_proto=write_model(pieces)), bpe(pieces, merges)
        inputs = ["".join(rng.choices("ab", k=rng.randrange(30))) for _ in range(200)]
        assert by_scores.encode(inputs) == [encoding.ids for encoding in by_merges.encode_batch(inputs)]


def test_scores_come_back_from_their_merges_in_the_same_order():
    pieces = pieces_of(["ba", "aba", "ab", "bb", "abab"])
    merges = merges_of_scores(pieces, [piece.text for piece in pieces])
    kinds = {piece.text: piece.kind for piece in pieces}
    expected = {"ba": 0.0, "aba": -1.0, "ab": -2.0, "bb": -3.0, "abab": -4.0}
    assert scores_of_merges(merges, kinds, (), "f") == expected
    assert scores_of_merges([merge.split(" ") for merge in merges], kinds, (), "f") == expected


def test_the_pairs_of_a_piece_stand_together_in_the_order_of_their_ids():
    pieces = pieces_of(["ab", "ba", "aba"])
    assert merges_of_scores(pieces, [piece.text for piece in pieces]) == ["a b", "b a", "a ba", "ab a"]


def test_pieces_of_the_same_score_are_refused():
    pieces = [*pieces_of(["ab"]), Piece("ba", 0.0, Kind.NORMAL)]
    with pytest.raises(CheckpointError, match="pieces of the same score"):
        merges_of_scores(pieces, [piece.text for piece in pieces])


def test_merges_of_tokens_that_are_found_before_all_merges_do_not_count():
    kinds = KINDS | {"aab": Kind.NORMAL}
    assert scores_of_merges(["a a", *WHOLE, "aa b", "a ab"], kinds, (), "f") == {"ab": 0.0, "ba": -1.0, "aba": -2.0, "aab": -3.0}


@pytest.mark.parametrize("piece", ["bc", "cb", "cc"])
def test_a_piece_of_a_character_that_is_no_piece_is_refused_since_sentencepiece_alone_would_join_it(piece):
    with pytest.raises(CheckpointError, match=f"lists no merge to '{piece}'"):
        scores_of_merges(WHOLE, KINDS | {piece: Kind.NORMAL}, (), "f")


def test_a_piece_whose_halves_can_never_meet_needs_no_merge():
    assert scores_of_merges(WHOLE, KINDS | {"cde": Kind.NORMAL}, (), "f")["aba"] == -2.0


BROKEN = {
    "an unknown piece": ([*WHOLE, "a c"], "merge of 'a' and 'c' is not of pieces to a piece"),
    "an unknown result": ([*WHOLE, "b b"], "merge of 'b' and 'b' is not of pieces to a piece"),
    "a byte": ([*WHOLE, "a <0x41>"], "not of pieces to a piece"),
    "half of the pairs": (WHOLE[:3], "only some of the merges to 'aba'"),
    "no pair": (WHOLE[:2], "no merge to 'aba'"),
    "a pair twice": ([*WHOLE, "a ba"], "only some of the merges to 'aba'"),
    "torn apart": (["a b", "ab a", "b a", "a ba"], "only some of the merges to 'aba'"),
    "again later": (["a b", "ab a", "a ba", "b a", "a b"], "the merges to 'ab' do not follow each other"),
    "one word": (["ab"], "the merge 'ab' is not of two pieces"),
    "three words": (["a b a"], "the merge 'a b a' is not of two pieces"),
    "a number": ([7], "the merge 7 is not of two pieces"),
    "nothing": ([None], "the merge None is not of two pieces"),
    "a pair of numbers": ([[1, 2]], "the merge a list is not of two pieces"),
    "a pair of lists": ([[["a"], "b"]], "the merge a list is not of two pieces"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_list_that_scores_cannot_express_is_refused_in_one_line(case):
    merges, words = BROKEN[case]
    with pytest.raises(CheckpointError) as error:
        scores_of_merges(merges, KINDS, (), "some/tokenizer.json")
    assert str(error.value).startswith("some/tokenizer.json: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
