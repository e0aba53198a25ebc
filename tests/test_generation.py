"""Generation through the public functions, in both backends, on the bundled checkpoint."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mlx_paligemma
import torch_ref
from mlx_paligemma.common.errors import ImageError, OptionError, PromptError

PICTURE = Path(__file__).parent.parent / "mlx_paligemma" / "demo" / "shapes.png"
BACKENDS = {"mlx": mlx_paligemma, "torch": torch_ref}


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    module = BACKENDS[request.param]
    return module, *module.load()


def picture_in_every_form():
    image = Image.open(PICTURE)
    return {
        "path": PICTURE,
        "text": str(PICTURE),
        "PIL": image,
        "array": np.asarray(image),
        "file": io.BytesIO(PICTURE.read_bytes()),
    }


def test_a_picture_may_come_in_any_form(backend):
    module, model, processor = backend
    answers = {
        name: module.generate(model, processor, source, "caption en").text for name, source in picture_in_every_form().items()
    }
    assert len(set(answers.values())) == 1, answers


def test_the_streamed_pieces_are_the_text(backend):
    module, model, processor = backend
    chunks = list(module.stream_generate(model, processor, PICTURE, "caption en"))
    result = module.generate(model, processor, PICTURE, "caption en")
    assert "".join(chunk.text for chunk in chunks) == result.text
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [result.finish_reason]


def test_the_picture_is_encoded_once_not_once_per_token(backend, monkeypatch):
    module, model, processor = backend
    calls = []
    real = type(model).encode_images
    monkeypatch.setattr(type(model), "encode_images", lambda self, pixels: calls.append(pixels.shape) or real(self, pixels))
    result = module.generate(model, processor, PICTURE, "caption en")
    assert result.stats.generation_tokens > 2
    assert len(calls) == 1


def test_a_batch_of_unlike_prompts_equals_single_runs(backend):
    module, model, processor = backend
    image = Image.open(PICTURE)
    images = [image, image.rotate(90, expand=True), image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), image]
    prompts = ["caption en", "segment heart ; star", "answer en how many shapes are there?", "detect red circle"]
    together = module.batch_generate(model, processor, images, prompts)
    for row, (picture, prompt) in enumerate(zip(images, prompts, strict=True)):
        alone = module.generate(model, processor, picture, prompt)
        assert together[row].token_ids == alone.token_ids, prompt
        assert together[row].finish_reason == alone.finish_reason
        assert together[row].stats.prompt_tokens == alone.stats.prompt_tokens
        assert [d.box for d in together[row].detections] == [d.box for d in alone.detections]


def test_max_tokens_ends_an_answer_with_length(backend):
    module, model, processor = backend
    whole = module.generate(model, processor, PICTURE, "caption en")
    short = module.generate(model, processor, PICTURE, "caption en", max_tokens=2)
    assert whole.finish_reason == "stop"
    assert short.finish_reason == "length"
    assert short.token_ids == whole.token_ids[:2]


def test_more_tokens_than_the_context_holds_end_at_the_context(backend):
    module, model, processor = backend
    context = model.config.text.max_position_embeddings
    prompt = "x" * (context - 64 - 2 - 5)  # one token per letter at most; fewer leave more room
    result = module.generate(model, processor, PICTURE, prompt, max_tokens=10**6, temperature=30.0, seed=1)
    assert result.stats.prompt_tokens + len(result.token_ids) <= context


def test_the_statistics_count_what_was_done(backend):
    module, model, processor = backend
    stats = module.generate(model, processor, PICTURE, "caption en").stats
    assert stats.prompt_tokens == 64 + len(processor.tokenizer.encode_prefix("caption en"))
    assert 0 < stats.time_to_first_token_s < 60
    assert stats.generation_tps > 1
    assert stats.peak_memory_bytes > 2.8e6 * 4  # the weights at least


def test_wrong_input_raises_errors_of_the_package(backend):
    module, model, processor = backend
    with pytest.raises(OptionError, match="max_token"):
        module.generate(model, processor, PICTURE, "caption en", max_token=3)
    with pytest.raises(ImageError, match=r"no\.png"):
        module.generate(model, processor, "no.png", "caption en")
    with pytest.raises(PromptError, match="one prompt per picture"):
        module.batch_generate(model, processor, [PICTURE], ["caption en", "ocr"])


def test_half_precision_stays_half_precision_from_pixels_to_logits_and_cache():
    import mlx.core as mx

    from mlx_paligemma.model.kv_cache import KVCache

    for name in ("bfloat16", "float16"):
        dtype = getattr(mx, name)
        model, processor = mlx_paligemma.load(dtype=name)
        arrays = mlx_paligemma.as_mlx(processor([PICTURE, PICTURE], ["caption en", "detect star ; circle"]))
        rows = model.encode_images(arrays["pixel_values"])
        cache = KVCache(model.config.text, 2, 100, dtype, arrays["padding"])
        logits = model.prefill(arrays["input_ids"], rows, cache)
        logits = [logits, model.decode(mx.array([[5], [6]]), cache), model(**arrays)]
        assert {array.dtype for array in [rows, *logits, cache.layers[0].keys, cache.layers[0].values]} == {dtype}


def test_half_precision_gives_the_answers_of_float32_on_the_demo():
    exact = mlx_paligemma.load()
    for name in ("bfloat16", "float16"):
        half = mlx_paligemma.load(dtype=name)
        for prompt in ("caption en", "answer en how many shapes are there?"):
            texts = [mlx_paligemma.generate(*pair, PICTURE, prompt).text for pair in (exact, half)]
            assert texts[0] == texts[1]
