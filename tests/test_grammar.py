"""Answers to "detect" and "segment" keep their form whatever the model wants, and one that keeps it unhelped is never changed.

The models are scripts here: random scores, or scores that ask for given tokens. Both backends walk the same tables.
"""

import re

import mlx.core as mx
import numpy as np
import pytest
import torch
from checkpoints import ROWS, tokenizer

from mlx_paligemma.common.decoding import Request
from mlx_paligemma.common.grammar import build_grammar, label_hash, plan, wanted_labels
from mlx_paligemma.common.locations import count_dropped, parse_locations
from mlx_paligemma.common.sampling import SamplingOptions
from mlx_paligemma.common.tokenizer import NUM_LOC
from mlx_paligemma.next_token import TokenChooser as MlxChooser
from torch_ref.next_token import TokenChooser as TorchChooser

TOKENS = tokenizer()
GRAMMAR = build_grammar(TOKENS, ROWS)
EOS, LOC, SEG = TOKENS.eos_token_id, TOKENS.first_loc, TOKENS.first_seg
OBJECT = r"(<loc\d{4}>){4}((<seg\d{3}>){16})?[^<>;]*"
FORM = re.compile(rf"[^<>;]*({OBJECT}( ?; ?{OBJECT})*)?")
BOX, OTHER = "<loc0001><loc0002><loc0003><loc0004>", "<loc0001><loc0002><loc0003><loc0005>"
SEGS = "".join(f"<seg{code:03d}>" for code in range(16))


def choosers(prompts, budget):
    request = Request(None, SamplingOptions(max_tokens=budget), LOC, plan(GRAMMAR, TOKENS, prompts, [budget] * len(prompts)))
    mlx, reference = MlxChooser(request), TorchChooser(request, torch.device("cpu"))
    return {
        "mlx": lambda scores: [np.array(part) for part in mlx(mx.array(scores)[:, None])],
        "torch": lambda scores: [part.numpy() for part in reference(torch.from_numpy(scores)[:, None])],
    }


def answer(scores_of, prompts, budget, backend):
    """Tokens of each row up to its eos or the budget, and how many of them the grammar changed. scores_of(step) is [B, V]."""
    choose = choosers(prompts, budget)[backend]
    steps = [choose(scores_of(step).astype(np.float32)) for step in range(budget)]
    tokens, changed = np.stack([step[0] for step in steps], 1), np.stack([step[3] for step in steps], 1)
    ends = [list(row).index(EOS) if EOS in row else budget for row in tokens]
    return [row[:end].tolist() for row, end in zip(tokens, ends, strict=True)], [
        int(row[: end + 1].sum()) for row, end in zip(changed, ends, strict=True)
    ]


def asking_for(texts):
    """Scores that prefer these answers, token by token, then eos; all other tokens are random."""
    ids = [TOKENS.encode(text) for text in texts]

    def scores(step):
        rows = np.random.default_rng(step).normal(0, 1, (len(ids), ROWS))
        for row, wanted in zip(rows, ids, strict=True):
            row[wanted[step] if step < len(wanted) else EOS] = 20
        return rows

    return scores


def wild(seed, rows):
    """Random scores under which every kind of token comes up, and few boxes and words, so that they repeat."""
    rng = np.random.default_rng(seed)
    few = rng.choice(NUM_LOC, 2)

    def scores(step):
        values = rng.normal(0, 1, (rows, ROWS))
        values[:, LOC + few] += rng.choice([4, 12], p=[0.1, 0.9])
        values[:, TOKENS.encode(" cat") + TOKENS.encode(" dog")] += rng.choice([0, 4, 6])
        values[:, TOKENS.encode(" ;")] += rng.choice([0, 6, 10])
        values[:, SEG : SEG + 4] += rng.choice([0, 4, 8], p=[0.8, 0.1, 0.1])
        values[:, [EOS, 0, 2, ROWS - 1]] += rng.choice([0, 2])
        return values

    return scores


@pytest.fixture(params=["mlx", "torch"])
def backend(request):
    return request.param


@pytest.mark.parametrize("budget", [1, 2, 5, 6, 12, 23, 60])
@pytest.mark.parametrize("prompt", ["detect cat", "segment cat ; dog"])
def test_whatever_the_scores_an_answer_has_the_form_and_ends_in_time(backend, budget, prompt, count):
    repeats = boxes = 0
    for seed in range(count(3, 9)):  # 8 answers each; 1,008 in full
        for ids in answer(wild(seed, 8), [prompt] * 8, budget, backend)[0]:
            text = TOKENS.decode(ids)
            assert len(ids) < budget, "no eos within the budget"
            assert FORM.fullmatch(text), text
            bins = [[int(value) for value in re.findall(r"<loc(\d+)>", match[0])] for match in re.finditer(OBJECT, text)]
            assert all(y1 >= y0 and x1 >= x0 for y0, x0, y1, x1 in bins), text
            named = [(location.box, location.label) for location in parse_locations(text)]
            assert len(set(named)) == len(named), text
            boxes += len(bins)
            repeats += len(bins) - len({tuple(box) for box in bins})
    assert boxes > 0 or budget < 12
    if budget == 60:
        assert (repeats > 0) == (";" in prompt)  # a box may come back for another label, and with one label not at all


def test_both_backends_choose_the_same_tokens():
    prompts = ["detect cat", "segment dog ; cat", "caption en", "detect person ; person with hat"]
    for seed in range(3):
        assert answer(wild(seed, 4), prompts, 50, "mlx") == answer(wild(seed, 4), prompts, 50, "torch")


VALID = [
    "",
    f"{BOX} cat",
    f"{BOX} cat ; {OTHER} cat",
    f"{BOX} cat ; {BOX} dog",
    f"{BOX}{SEGS} cat",
    f"{BOX}{SEGS} cat ; {OTHER}{SEGS} dog",
    f"{BOX}{SEGS}",
    f"{BOX}",
    "no cat here",
    f"so: {BOX} cat",
    f"{BOX} l'été 3 cats 😀",
    f"{BOX};{OTHER}",
    f"{BOX} cat ; {BOX} cat star ; {OTHER} cat",
    "<loc0001><loc1023><loc0001><loc1023> cat",
]


@pytest.mark.parametrize("prompt", ["detect cat ; cat star ; dog", "segment cat ; cat star ; dog"])
def test_an_answer_of_the_right_form_is_not_changed(backend, prompt):
    budget = max(len(TOKENS.encode(text)) for text in VALID) + 1
    found, changes = answer(asking_for(VALID), [prompt] * len(VALID), budget, backend)
    assert [TOKENS.decode(ids) for ids in found] == VALID
    assert changes == [0] * len(VALID)


def test_a_prompt_for_no_places_is_left_alone(backend):
    text = "<loc0009><loc0001> ; ; <seg001>"
    found, changes = answer(asking_for([text, text]), ["caption en", "detect cat"], 20, backend)
    assert TOKENS.decode(found[0]) == text
    assert changes[0] == 0
    assert changes[1] > 0


@pytest.mark.parametrize(
    ("wanted", "prompt", "form"),
    [
        ("<loc0001><loc0002> cat", "detect cat", r"<loc0001><loc0002>(<loc\d{4}>){2}.*"),
        ("<loc0009><loc0009><loc0003><loc0002> cat", "detect cat", r"(<loc0009>){2}<loc(0009|00[1-9]\d|0[1-9]..|1...)>{1}<loc.*"),
        (f"{BOX}<loc0007> cat", "detect cat", rf"{BOX}(?!<loc).*"),
        (f"{BOX}<seg001><seg002> cat", "segment cat", rf"{BOX}<seg001><seg002>(<seg\d{{3}}>){{14}}.*"),
        (f"{BOX} cat ; {BOX} cat", "detect cat", rf"{BOX} cat ; (<loc\d{{4}}>){{4}}.*"),
        (f"{BOX} cat ; {BOX} cat", "detect cat ; dog", rf"{BOX} cat ; {BOX}(?! cat).*"),
        (f"{BOX} cat ; {BOX} cat", "detect cat ; cat star", rf"{BOX} cat ; {BOX} cat(?!$).+"),
        (f"{BOX} cat ;", "detect cat", rf"{BOX} cat ; ?<loc.*"),
    ],
)  # fmt: skip
def test_what_would_break_the_form_is_replaced(backend, wanted, prompt, form):
    ((ids,), (changes,)) = answer(asking_for([wanted]), [prompt], 40, backend)
    assert re.fullmatch(form, TOKENS.decode(ids)), TOKENS.decode(ids)
    assert changes > 0


@pytest.mark.parametrize("room", range(1, 12))
def test_an_object_is_only_begun_where_it_can_be_ended(backend, room):
    text = f"{BOX} cat ; {OTHER} cat"
    ((ids,), _) = answer(asking_for([text]), ["detect cat"], room, backend)
    assert len(ids) < room
    assert count_dropped(TOKENS.decode(ids)) == 0
    whole = TOKENS.encode(text)
    assert ids == whole[: len(ids)]


def test_an_end_for_want_of_room_is_told_apart(backend):
    text = f"{BOX} cat ; {OTHER} cat"
    whole = len(TOKENS.encode(text)) + 1
    for room in (whole, whole - 1):
        choose = choosers(["detect cat"], room)[backend]
        scores = asking_for([text])
        cuts = [bool(choose(scores(step).astype(np.float32))[4][0]) for step in range(room)]
        assert any(cuts) == (room < whole)


def test_a_row_that_is_done_is_no_change(backend):
    _, changes = answer(asking_for(["", f"{BOX} cat"]), ["detect cat"] * 2, 30, backend)
    assert changes == [0, 0]


@pytest.mark.parametrize(
    ("prompt", "labels"),
    [
        ("detect cat", ["cat"]),
        (" segment cat ; red dog ", ["cat", "red dog"]),
        ("detect", [""]),
        ("Detect\tcat", ["cat"]),
        ("caption en", []),
        ("detection", []),
    ],
)
def test_a_prompt_names_its_labels(prompt, labels):
    assert wanted_labels(prompt) == labels


def test_a_batch_without_such_prompts_has_no_grammar():
    assert plan(GRAMMAR, TOKENS, ["caption en", "ocr"], [9, 9]) is None


def test_a_label_hash_tells_order_and_length():
    hashes = {label_hash(tokens) for tokens in ([], [0], [0, 0], [1, 2], [2, 1], [70000] * 40)}
    assert len(hashes) == 6
    assert all(0 <= value < 2**32 for value in hashes)


def test_every_piece_of_the_vocabulary_has_its_kind():
    kinds = dict(zip(range(ROWS), GRAMMAR.kinds, strict=True))
    assert {int(kinds[i]) for i in range(LOC, LOC + 1024)} == {2}
    assert {int(kinds[i]) for i in range(SEG, SEG + 128)} == {3}
    assert kinds[EOS] == 5
    assert [int(kinds[TOKENS.pad_token_id]), int(kinds[ROWS - 1])] == [6, 6]
    assert [int(kinds[i]) for i in TOKENS.encode(" ;") + TOKENS.encode(";")] == [4, 4]
    assert [int(kinds[i]) for i in TOKENS.encode(" ")] == [1]
    assert {int(kinds[i]) for i in TOKENS.encode(" cat😀é")} == {0}
    assert {int(kinds[i]) for i in TOKENS.encode("<")} == {6}
