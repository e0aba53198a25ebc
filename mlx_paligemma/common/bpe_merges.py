"""The order of merges in its two forms: SentencePiece's scores, and the list of pairs in a tokenizer.json.

SentencePiece joins any two neighbours whose text together is a piece: the piece with the best score first, the leftmost first.
Hugging Face tokenizers (https://github.com/huggingface/tokenizers) join the pairs of a list, the first pair first, the leftmost
first. So the ids are the same where the list names all pairs of each piece, one piece after the other. Lists that were made from
SentencePiece do; any other is refused, for no scores express it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from .errors import CheckpointError
from .sentencepiece_proto import Kind, Piece

COPY = "copy tokenizer.model from the checkpoint that it was made of, such as google/paligemma-3b-pt-224"
Pair = tuple[str, str]


def scores_of_merges(merges: list[Any], kinds: Mapping[str, Kind], characters: Collection[str], name: str) -> dict[str, float]:
    """A score for each piece that merges make, 0 for the first and then downwards.

    Args:
        merges: each "a b" or ["a", "b"].
        kinds: every piece by its text in the file.
        characters: of those, the ones that stand for byte pieces.
        name: stands in error messages.

    Raises:
        CheckpointError: a merge is not of pieces to a piece, or no scores give the order of the list.
    """
    parts = {text for text, kind in kinds.items() if kind == Kind.NORMAL} | set(characters)
    scores: dict[str, float] = {}
    for result, pairs in groupby(_that_happen(_as_pairs(merges, name), parts, kinds, name), "".join):
        if result in scores:
            problem = f"the merges to {shown(result)} do not follow each other, which SentencePiece cannot express"
            raise CheckpointError(f"{name}: {problem}; {COPY}")
        if sorted(pairs) != sorted(_joins(result, parts, kinds)):
            problem = f"it lists only some of the merges to {shown(result)}, which SentencePiece cannot express"
            raise CheckpointError(f"{name}: {problem}; {COPY}")
        scores[result] = -float(len(scores))
    for text in kinds:
        if text in parts and text not in scores and _joins(text, parts, kinds):
            raise CheckpointError(f"{name}: it lists no merge to {shown(text)}, which SentencePiece cannot express; {COPY}")
    return scores


def merges_of_scores(pieces: Sequence[Piece], texts: Sequence[str]) -> list[str]:
    """Every pair that makes a piece, the piece with the best score first, as "a b".

    Args:
        pieces: the vocabulary.
        texts: what each piece is called in tokenizer.json; another text than the piece's own where a character stands for a byte.

    Raises:
        CheckpointError: two such pieces have the same score: SentencePiece takes the leftmost then, and no list says that.
    """
    ids = {text: index for index, text in enumerate(texts)}
    parts = {text for piece, text in zip(pieces, texts, strict=True) if piece.kind == Kind.NORMAL or text != piece.text}
    made = [(piece.score, pairs) for piece in pieces if piece.kind == Kind.NORMAL and (pairs := _joins(piece.text, parts, ids))]
    if len({score for score, _ in made}) < len(made):
        raise CheckpointError("tokenizer.model has pieces of the same score, whose order of merges tokenizer.json cannot express")
    made.sort(key=lambda entry: -entry[0])
    return [" ".join(pair) for _, pairs in made for pair in sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]


def shown(value: Any) -> str:
    """A value from a file as it may stand in a message."""
    if isinstance(value, str):
        return ascii(value[:40])
    return str(value)[:40] if isinstance(value, int | float | None) else f"a {type(value).__name__}"


def _joins(text: str, parts: Collection[str], known: Collection[str]) -> list[Pair]:
    """The pairs that SentencePiece joins to `text`: of two `parts`, or of characters that are no piece (not `known`)."""
    pairs = [(text[:i], text[i:]) for i in range(1, len(text))]
    return [
        (left, right)
        for left, right in pairs
        if (left in parts or (len(left) == 1 and left not in known))
        and (right in parts or (len(right) == 1 and right not in known))
    ]


def _as_pairs(merges: list[Any], name: str) -> Iterator[Pair]:
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], str):
            raise CheckpointError(f"{name}: the merge {shown(merge)} is not of two pieces; {COPY}")
        yield pair[0], pair[1]


def _that_happen(merges: Iterable[Pair], parts: Collection[str], kinds: Mapping[str, Kind], name: str) -> Iterator[Pair]:
    """The merges but those of tokens that are taken out of a text before all merges."""
    for left, right in merges:
        if left in parts and right in parts and left + right in parts:
            yield left, right
        elif any(kinds.get(text, Kind.BYTE) == Kind.BYTE and text not in parts for text in (left, right, left + right)):
            raise CheckpointError(f"{name}: the merge of {shown(left)} and {shown(right)} is not of pieces to a piece; {COPY}")
