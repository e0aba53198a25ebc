"""What is told of the tokens chosen: their log-probabilities and the scores of boxes are those of the model's own scores."""

import math
import shutil

import mlx.core as mx
import numpy as np
import pytest
import torch

import mlx_paligemma
import torch_ref
from mlx_paligemma import next_token as mlx_next_token
from mlx_paligemma.common.decoding import Request, Step
from mlx_paligemma.common.hub import bundled_checkpoint
from mlx_paligemma.common.locations import NEAR
from mlx_paligemma.common.mask_codec import FILE_NAME
from mlx_paligemma.common.processor import ModelInputs
from mlx_paligemma.common.sampling import SamplingOptions
from mlx_paligemma.demo.scenes import draw_scene
from torch_ref import next_token as torch_next_token
from torch_ref.generation import as_torch

SCENE = draw_scene(np.random.default_rng(3), size=112, count=2, number=False)
WHERE = f"detect {SCENE.shapes[0].kind}"
SAMPLED = {"temperature": 1.5, "top_k": 30, "top_p": 0.95, "seed": 3}
ROUNDING = 1e-4  # float32 logits of about 20, summed in another order by another backend or in another batch


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
    assert result.token_logprobs == pytest.approx(
        [wanted[i, token].item() for i, token in enumerate(result.token_ids)], abs=ROUNDING
    )


@pytest.mark.parametrize("options", [{}, {"grammar": False}, SAMPLED], ids=["greedy", "free", "sampled"])
def test_the_likeliest_tokens_are_those_of_the_model_before_filters(demo, reference, options):
    package, model, processor = demo
    result = package.generate(model, processor, SCENE.image, WHERE, token_logprobs=True, top_logprobs=20, **options)
    wanted = told_at_once(reference, WHERE, result.token_ids)
    assert len(result.top_logprobs) == len(result.token_ids) >= 5
    for row, likeliest, token, logprob in zip(wanted, result.top_logprobs, result.token_ids, result.token_logprobs, strict=True):
        ids, told = map(list, zip(*likeliest, strict=True))
        assert len(set(ids)) == 20 and told == sorted(told, reverse=True)
        assert told == pytest.approx(row.topk(20).values.tolist(), abs=ROUNDING)
        assert told == pytest.approx(row[ids].tolist(), abs=ROUNDING)
        assert dict(likeliest).get(token, logprob) == logprob
    if options == {"grammar": False}:
        assert [likeliest[0][0] for likeliest in result.top_logprobs] == result.token_ids


def test_to_be_told_of_the_likeliest_changes_no_token(demo):
    package, model, processor = demo
    for options in ({}, SAMPLED):
        plain = package.generate(model, processor, SCENE.image, WHERE, **options)
        asked = package.generate(model, processor, SCENE.image, WHERE, top_logprobs=3, **options)
        assert (plain.token_ids, plain.top_logprobs) == (asked.token_ids, None)
        assert (asked.token_logprobs, len(asked.top_logprobs)) == (None, len(asked.token_ids))


def test_the_likeliest_tokens_of_a_batch_are_those_of_single_runs(demo):
    package, model, processor = demo
    prompts = [WHERE, "caption en", "answer en how many shapes are there?"]
    together = package.batch_generate(model, processor, [SCENE.image] * 3, prompts, top_logprobs=5)
    for prompt, found in zip(prompts, together, strict=True):
        alone = package.generate(model, processor, SCENE.image, prompt, top_logprobs=5)
        assert found.token_ids == alone.token_ids
        same_likeliest(found.top_logprobs, alone.top_logprobs)


def test_both_backends_tell_of_the_same_tokens():
    told = [package.generate(*package.load(), SCENE.image, WHERE, top_logprobs=5) for package in (mlx_paligemma, torch_ref)]
    assert told[0].token_ids == told[1].token_ids
    same_likeliest(told[0].top_logprobs, told[1].top_logprobs)


def same_likeliest(found, wanted):
    """Tokens whose log-probabilities differ by no more than rounding may change places."""
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert [logprob for _, logprob in one] == pytest.approx([logprob for _, logprob in other], abs=ROUNDING)
        for token, logprob in one:
            assert dict(other).get(token, other[-1][1]) == pytest.approx(logprob, abs=ROUNDING)


def steps_of_mlx(options, scores, compiled=False):
    choose = mlx_next_token.TokenChooser(Request(None, options, first_loc=0, plan=None), compiled)
    return Step(*(np.array(part).tolist() for part in choose(mx.array(scores)[:, None])))


def steps_of_torch(options, scores):
    choose = torch_next_token.TokenChooser(Request(None, options, first_loc=0, plan=None), torch.device("cpu"))
    return Step(*(part.tolist() for part in choose(torch.from_numpy(scores)[:, None])))


def compiled_steps_of_mlx(options, scores):
    return steps_of_mlx(options, scores, compiled=True)


@pytest.mark.parametrize("step_of", [steps_of_mlx, compiled_steps_of_mlx, steps_of_torch], ids=["mlx", "compiled", "torch"])
def test_equal_scores_are_told_in_the_order_of_ids_and_the_chosen_token_first(step_of):
    """Scores in steps of 1/4, as bfloat16 has them: most of the likeliest share theirs with others."""
    rng = np.random.default_rng(4)
    scores = (np.round(rng.normal(20, 1, (3, 2000)) * 4) / 4).astype(np.float32)
    step = step_of(SamplingOptions(top_logprobs=20), scores)
    assert step.top_ids == np.argsort(-scores, axis=-1, kind="stable")[:, :20].tolist()
    assert [ids[0] for ids in step.top_ids] == step.token_ids
    wanted = torch.from_numpy(scores).log_softmax(-1).sort(-1, descending=True).values[:, :20]
    assert np.array(step.top_logprobs) == pytest.approx(wanted.numpy(), abs=ROUNDING)
    assert step_of(SamplingOptions(), scores).top_ids == ()


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
    asked = package.generate(model, processor, SCENE.image, WHERE, max_tokens=6, grammar=False, token_logprobs=True, top_logprobs=4)
    assert plain.token_logprobs is plain.top_logprobs is None
    assert len(asked.token_logprobs) == len(asked.top_logprobs) == len(asked.token_ids) == 5
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
