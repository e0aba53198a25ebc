"""What is told of the tokens chosen: their log-probabilities and the scores of boxes are those of the model's own scores."""

import math
import shutil

import numpy as np
import pytest
import torch

import mlx_paligemma
import torch_ref
from mlx_paligemma.common.hub import bundled_checkpoint
from mlx_paligemma.common.locations import NEAR
from mlx_paligemma.common.mask_codec import FILE_NAME
from mlx_paligemma.common.processor import ModelInputs
from mlx_paligemma.demo.scenes import draw_scene
from torch_ref.generation import as_torch

SCENE = draw_scene(np.random.default_rng(3), size=112, count=2, number=False)
WHERE = f"detect {SCENE.shapes[0].kind}"
SAMPLED = {"temperature": 1.5, "top_k": 30, "top_p": 0.95, "seed": 3}


@pytest.fixture(scope="module", params=[mlx_paligemma, torch_ref], ids=["mlx", "torch"])
def demo(request):
    return request.param, *request.param.load()


@pytest.fixture(scope="module")
def reference():
    return torch_ref.load()


def told_at_once(reference, prompt, tokens):
    """Log-probabilities [tokens, V] before each token, from one pass over the whole answer."""
    model, processor = reference
    inputs = processor([SCENE.image], [prompt])
    ids = np.concatenate([inputs.input_ids, np.array([tokens], dtype=np.int32)], axis=1)
    prefix = np.array([inputs.input_ids.shape[1]], dtype=np.int32)
    with torch.no_grad():
        logits = model(**as_torch(ModelInputs(ids, inputs.pixel_values, None, prefix)))[0]
    return logits[prefix[0] - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("options", [{}, {"grammar": False}, SAMPLED], ids=["greedy", "free", "sampled"])
def test_log_probabilities_are_those_of_the_model_before_filters(demo, reference, options):
    package, model, processor = demo
    result = package.generate(model, processor, SCENE.image, WHERE, token_logprobs=True, **options)
    wanted = told_at_once(reference, WHERE, result.token_ids)
    assert len(result.token_ids) >= 5
    assert result.token_logprobs == pytest.approx([wanted[i, token].item() for i, token in enumerate(result.token_ids)], abs=1e-4)


def test_a_score_is_what_the_bins_around_have_together(demo, reference):
    package, model, processor = demo
    result = package.generate(model, processor, SCENE.image, WHERE)
    probabilities = told_at_once(reference, WHERE, result.token_ids)[:4].exp()
    first = processor.tokenizer.first_loc
    shares = []
    for row, token in zip(probabilities, result.token_ids, strict=False):
        least, most = max(token - NEAR, first), min(token + NEAR, first + 1023)
        shares.append(row[least : most + 1].sum().item())
    assert result.detections[0].score == pytest.approx(math.prod(shares) ** 0.25, abs=1e-4)


def test_log_probabilities_come_only_when_asked_for_and_cost_no_pass(demo, monkeypatch):
    package, model, processor = demo
    passes = []
    for name in ("prefill", "decode"):
        real = getattr(type(model), name)
        monkeypatch.setattr(type(model), name, lambda self, *rest, real=real: passes.append(real) or real(self, *rest))
    plain = package.generate(model, processor, SCENE.image, WHERE, max_tokens=6, grammar=False)
    without = len(passes)
    asked = package.generate(model, processor, SCENE.image, WHERE, max_tokens=6, grammar=False, token_logprobs=True)
    assert plain.token_logprobs is None
    assert len(asked.token_logprobs) == len(asked.token_ids) == 5
    assert len(passes) == 2 * without


def test_min_score_leaves_out_boxes_but_not_their_text(demo):
    package, model, processor = demo
    everything = package.generate(model, processor, SCENE.image, WHERE)
    score = everything.detections[0].score
    less = package.generate(model, processor, SCENE.image, WHERE, min_score=min(score + 1e-3, 1.0))
    same = package.generate(model, processor, SCENE.image, WHERE, min_score=score - 1e-3)
    assert less.text == same.text == everything.text
    assert len(same.detections) == len(everything.detections) > len(less.detections)


def test_without_a_mask_codec_the_boxes_come_with_a_note(demo, tmp_path):
    package = demo[0]
    folder = shutil.copytree(bundled_checkpoint(), tmp_path / "checkpoint")
    (folder / FILE_NAME).unlink()
    model, processor = package.load(folder, dtype="float32")
    result = package.generate(model, processor, SCENE.image, WHERE.replace("detect", "segment"))
    assert [found.mask for found in result.detections] == [None]
    (note,) = result.notes
    assert FILE_NAME in note
    assert "gs://big_vision/paligemma" in note
    assert package.generate(model, processor, SCENE.image, WHERE).notes == ()
