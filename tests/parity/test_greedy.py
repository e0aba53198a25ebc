"""Greedy answers of the tiny models: MLX, the reference and transformers choose the same tokens, alone and in a batch.

Equal means the same tokens, or a first difference where the two best logits nearly tie.
"""

import numpy as np
import pytest
import torch

import torch_ref
from mlx_paligemma import batch_generate, generate, stream_generate
from mlx_paligemma.common.processor import ModelInputs
from torch_ref.generation import as_torch

from .compare import TIE, report
from .originals import PICTURES, PROMPTS, arguments, original, transformers
from .tiny_models import Pair

LENGTH = 40  # far beyond the window of 8


@pytest.fixture(scope="module")
def answers(pairs):
    """By generation: the reference's answer to each prompt alone."""
    return {generation: [torch_answer(pair, row, prompt) for row, prompt in zip(PICTURES, PROMPTS, strict=True)]
            for generation, pair in pairs.items()}  # fmt: skip


def torch_answer(pair: Pair, pictures: list, prompt: str) -> list[int]:
    return list(torch_ref.generate(pair.reference, pair.processor(), pictures, prompt, max_tokens=LENGTH, grammar=False).token_ids)


def assert_same_tokens(pair: Pair, row: int, found: list[int], wanted: list[int]) -> None:
    """Equal, or first unlike where the reference's two best logits differ by less than TIE."""
    if found == wanted:
        return
    place = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
    gap = gap_after(pair, row, wanted[:place])
    report(f"row {row} differs first at token {place}, where the gap is {gap:.1e}")
    assert gap < TIE, f"token {place} of {found} and {wanted}: the two best logits are {gap:.1e} apart"


def gap_after(pair: Pair, row: int, tokens: list[int]) -> float:
    """How far the best logit is above the second after these tokens of an answer."""
    inputs = pair.processor()([PICTURES[row]], [PROMPTS[row]])
    ids = np.concatenate([inputs.input_ids, np.array([tokens], dtype=np.int32).reshape(1, -1)], axis=1)
    whole = ModelInputs(ids, inputs.pixel_values, None, np.array([inputs.input_ids.shape[1]], dtype=np.int32))
    with torch.no_grad():
        best = pair.reference(**as_torch(whole))[0, -1].topk(2).values
    return float(best[0] - best[1])


def test_the_answers_are_long_and_varied(answers, generation):
    assert min(len(set(answer)) for answer in answers[generation]) >= 10
    assert len({tuple(answer) for answer in answers[generation]}) == len(PROMPTS)


def test_mlx_answers_as_the_reference_does(pair, answers, generation):
    for row, wanted in enumerate(answers[generation]):
        result = generate(pair.model, pair.processor(), PICTURES[row], PROMPTS[row], max_tokens=LENGTH, grammar=False)
        assert_same_tokens(pair, row, list(result.token_ids), wanted)


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_a_batch_of_unlike_rows_answers_as_each_row_alone(pair, answers, generation, backend):
    run, model = (batch_generate, pair.model) if backend == "mlx" else (torch_ref.batch_generate, pair.reference)
    results = run(model, pair.processor(), PICTURES, PROMPTS, max_tokens=LENGTH, grammar=False)
    for row, wanted in enumerate(answers[generation]):
        assert_same_tokens(pair, row, list(results[row].token_ids), wanted)


@pytest.mark.parametrize("rows", [[0], [1], [2], [0, 1, 2]], ids=["first", "second", "third", "all in a batch"])
def test_transformers_answers_as_the_reference_does(pair, answers, generation, rows):
    inputs = pair.processor()([PICTURES[row] for row in rows], [PROMPTS[row] for row in rows])
    given = arguments(inputs, pair.config.vision.num_patches)
    out = original(pair.folder).generate(**given, max_new_tokens=LENGTH, do_sample=False, eos_token_id=1, pad_token_id=0)
    for row, ids in zip(rows, out[:, inputs.input_ids.shape[1] :].tolist(), strict=True):
        found = ids[: ids.index(1)] if 1 in ids else ids
        assert_same_tokens(pair, row, found, answers[generation][row])


def test_a_streamed_answer_has_the_same_tokens(pair, answers, generation):
    chunks = list(stream_generate(pair.model, pair.processor(), PICTURES[1], PROMPTS[1], max_tokens=LENGTH, grammar=False))
    ids = [chunk.token_id for chunk in chunks if chunk.finish_reason != "stop"]
    assert_same_tokens(pair, 1, ids, answers[generation][1])


def test_transformers_is_the_version_that_the_figures_are_of():
    assert transformers.__version__ == "5.23.0"
