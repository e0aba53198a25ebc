"""The form of answers to "detect" and "segment", as tables of a state machine over classes of tokens.

    answer = [text] [object {" ; " object}]
    object = 4 loc tokens, [16 seg tokens], [label]

A backend walks the tables on its device, for a whole batch and without asking the host. Beyond the form they see to it that
no box is reversed (y1 >= y0, x1 >= x0), that no label gets exactly the same box twice, and that the answer ends by itself
before its token budget does. An answer that keeps to all this unhelped is never changed, and one without any object stays
possible. Source: PaliGemma, arXiv:2407.07726, section 3.2; the forms are those of big_vision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from .tokenizer import NUM_LOC, NUM_SEG, PaliGemmaTokenizer

HASH_FACTOR = 0x9E3779B1  # odd, so that it has an inverse modulo 2 ** 32
HASH_MASK = 0xFFFFFFFF
MARKS = "<>;"  # they end a label
NO_HASH = (-1, -1)


class Kind(IntEnum):
    """Classes of tokens."""

    TEXT = 0
    BLANK = 1  # the space between ";" and the next object; text anywhere else
    LOC = 2
    SEG = 3
    SEPARATOR = 4  # ";"
    EOS = 5
    OTHER = 6  # control tokens, rows beyond the vocabulary, text with marks in it


FREE, START, LOC1, BOXED = 0, 1, 2, 5  # states; FREE is that of rows without a grammar; LOC1 to LOC3: 1 to 3 loc tokens so far
SEG1, MASKED = 6, 21  # SEG1 to SEG15: 1 to 15 seg tokens so far
LABEL, SEPARATED, SPACED, DONE = 22, 23, 24, 25
STATES = 26
OBJECT_COST = 5  # tokens of the shortest object, and eos


@dataclass(frozen=True)
class Grammar:
    """The tables for a vocabulary of V rows. S states, K kinds."""

    kinds: np.ndarray  # int32 [V]
    allowed: np.ndarray  # bool [S, K]
    following: np.ndarray  # int32 [S, K], the next state
    cost: np.ndarray  # int32 [S, K], tokens from this one to the end of the shortest answer, both counted
    first_loc: int
    eos: int


@dataclass(frozen=True)
class GrammarPlan:
    """What the grammar needs to know of a batch. B rows."""

    grammar: Grammar
    start: np.ndarray  # int32 [B], FREE or START
    budget: np.ndarray  # int32 [B], new tokens at most, eos included
    names: np.ndarray  # int32 [B], how many labels the prompt names: as many boxes may coincide
    prefixes: np.ndarray  # int64 [B, N, 2], hash and length of names with which a longer name of the prompt begins; or NO_HASH
    capacity: int  # objects that fit into the largest budget


def build_grammar(tokenizer: PaliGemmaTokenizer, rows: int) -> Grammar:
    """The tables for a vocabulary, and for an embedding table of `rows` rows."""
    kinds = np.full(rows, Kind.OTHER, dtype=np.int32)
    for token, text in enumerate(tokenizer.texts()):
        kinds[token] = _kind(text)
    kinds[tokenizer.first_loc : tokenizer.first_loc + NUM_LOC] = Kind.LOC
    kinds[tokenizer.first_seg : tokenizer.first_seg + NUM_SEG] = Kind.SEG
    kinds[tokenizer.eos_token_id] = Kind.EOS
    allowed = np.zeros((STATES, len(Kind)), dtype=bool)
    following, cost = np.zeros((2, STATES, len(Kind)), dtype=np.int32)
    for state, kind, after, least in _rules():
        allowed[state, kind], following[state, kind], cost[state, kind] = True, after, least
    return Grammar(kinds, allowed, following, cost, tokenizer.first_loc, tokenizer.eos_token_id)


def plan(grammar: Grammar, tokenizer: PaliGemmaTokenizer, prompts: Sequence[str], budgets: Sequence[int]) -> GrammarPlan | None:
    """For a batch of prompts; None where none of them asks for places."""
    asked = [wanted_labels(prompt) for prompt in prompts]
    if not any(asked):
        return None
    start = [START if labels else FREE for labels in asked]
    prefixes = [_beginnings([tokenizer.encode(f" {label}") for label in labels]) for labels in asked]
    most = max(1, *map(len, prefixes))
    padded = [rows + [NO_HASH] * (most - len(rows)) for rows in prefixes]
    return GrammarPlan(
        grammar,
        np.array(start, dtype=np.int32),
        np.array(budgets, dtype=np.int32),
        np.array([max(len(labels), 1) for labels in asked], dtype=np.int32),
        np.array(padded, dtype=np.int64),
        max(budgets) // OBJECT_COST + 1,
    )


def wanted_labels(prompt: str) -> list[str]:
    """What a prompt asks to locate: ["cat", "dog"] for "detect cat ; dog"; nothing where it asks for no places."""
    task, *names = prompt.split(maxsplit=1)
    if task.lower() not in ("detect", "segment"):
        return []
    return [name.strip() for name in "".join(names).split(";")]


def label_hash(tokens: Sequence[int]) -> int:
    """A label's tokens as one number below 2 ** 32: h becomes h * HASH_FACTOR + token + 1, token by token."""
    value = 0
    for token in tokens:
        value = (value * HASH_FACTOR + token + 1) & HASH_MASK
    return value


def _beginnings(names: list[list[int]]) -> list[tuple[int, int]]:
    """Hash and length of each name with which a longer one begins, as "person" in "person ; person with hat"."""
    short = [a for a in names if any(len(b) > len(a) and b[: len(a)] == a for b in names)]
    return [(label_hash(name), len(name)) for name in short]


def _kind(text: str) -> Kind:
    if text.strip() == ";":
        return Kind.SEPARATOR
    if text == " ":
        return Kind.BLANK
    return Kind.OTHER if not text or set(text) & set(MARKS) else Kind.TEXT


def _rules() -> list[tuple[int, Kind, int, int]]:
    """All moves: state, kind of token, next state, cost."""
    rules = [(FREE, kind, FREE, 0) for kind in Kind] + [(DONE, kind, DONE, 0) for kind in Kind]
    rules += [*_text(START, START), (START, Kind.LOC, LOC1, OBJECT_COST)]
    rules += [(LOC1 + i, Kind.LOC, LOC1 + i + 1, OBJECT_COST - 1 - i) for i in range(3)]
    rules += [(BOXED, Kind.SEG, SEG1, 17)]
    rules += [(SEG1 + i, Kind.SEG, SEG1 + i + 1, 16 - i) for i in range(15)]
    for state in (BOXED, MASKED, LABEL):
        rules += [*_text(state, LABEL), (state, Kind.SEPARATOR, SEPARATED, 2 + OBJECT_COST)]
    rules += [(SEPARATED, Kind.BLANK, SPACED, 1 + OBJECT_COST), (SEPARATED, Kind.LOC, LOC1, OBJECT_COST)]
    return [*rules, (SPACED, Kind.LOC, LOC1, OBJECT_COST)]


def _text(state: int, after: int) -> list[tuple[int, Kind, int, int]]:
    return [(state, Kind.TEXT, after, 2), (state, Kind.BLANK, after, 2), (state, Kind.EOS, DONE, 1)]
