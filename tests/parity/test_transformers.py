"""The reference, and MLX with it, against transformers' own PaliGemma: the same folder, the same tokens, the same logits.

token_type_ids and attention_mask are always given and attention is eager: without them transformers' result depends on the
attention implementation, and Gemma 2 becomes causal in its prefix (SPEC B.5).
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mlx_paligemma.common.checkpoint import canonical_name, expected_shapes
from mlx_paligemma.common.processor import ModelInputs

from .compare import LOGITS_LIMIT, mlx_decoded, mlx_logits, relative_error, torch_decoded, torch_logits
from .test_end_to_end import BATCHES, random_suffix, with_suffix
from .tiny_models import CHARACTERS, IMAGE_TOKEN, PIECES, WORDS, Pair, config_json, fill, random_inputs, vocabulary, write_pair

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

PROMPTS = ["detect cat", "answer en what is in it?", "segment cat ; car"]
SUFFIXES = ["<loc0012><loc0400><loc0900><loc1023> cat", "a cat", "<loc0000><loc0001><loc0002><loc0003><seg000><seg127> cat ; car"]


@pytest.fixture(scope="module")
def originals(pairs) -> dict[int, torch.nn.Module]:
    """transformers' models of the two tiny folders."""
    return {generation: original(pair.folder) for generation, pair in pairs.items()}


@pytest.fixture(scope="module")
def transformers_processor(pairs):
    """transformers' processor with our tiny vocabulary."""
    side = pairs[1].config.vision.image_size
    tokenizer = transformers.GemmaTokenizer(vocab={text: i for i, text in enumerate(PIECES)}, merges=merges())
    images = transformers.models.siglip.image_processing_pil_siglip.SiglipImageProcessorPil(
        size={"height": side, "width": side}, do_convert_rgb=True
    )
    images.image_seq_length = pairs[1].config.vision.num_patches
    return transformers.PaliGemmaProcessor(images, tokenizer)


def merges() -> list[tuple[str, str]]:
    """Every way to put a word together from two pieces, the first words first."""
    known = {*WORDS, *CHARACTERS}
    return [(word[:i], word[i:]) for word in WORDS for i in range(1, len(word)) if {word[:i], word[i:]} <= known]


def original(folder: Path):
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, local_files_only=True
    )
    return model.eval()


def arguments(inputs: ModelInputs, patches: int) -> dict[str, torch.Tensor]:
    """A batch as transformers takes it: pictures of all rows in one list, without the fillers of ragged rows."""
    pictures = (inputs.input_ids == IMAGE_TOKEN).sum(1) // patches
    pixels = np.concatenate([row[:count] for row, count in zip(inputs.pixel_values, pictures, strict=True)])
    ids, seen, types = (
        torch.from_numpy(array).long() for array in (inputs.input_ids, inputs.attention_mask, inputs.token_type_ids)
    )
    pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": seen, "token_type_ids": types}


def original_logits(model, inputs: ModelInputs, pair: Pair) -> np.ndarray:
    with torch.no_grad():
        return model(**arguments(inputs, pair.config.vision.num_patches)).logits.numpy()


def errors(pair: Pair, model, inputs: ModelInputs) -> tuple[float, float]:
    """Of the reference and of MLX against transformers, over all tokens that are not padding."""
    real = inputs.attention_mask.astype(bool)
    wanted = original_logits(model, inputs, pair)[real]
    return (
        relative_error(torch_logits(pair.reference, inputs)[real], wanted),
        relative_error(mlx_logits(pair.model, inputs)[real], wanted),
    )


@pytest.mark.parametrize("batch", BATCHES)
def test_both_backends_give_transformers_logits(pair, originals, generation, batch):
    found = errors(pair, originals[generation], random_inputs(pair.config, *BATCHES[batch]))
    print(f"\n{batch}: torch_ref {found[0]:.1e}, mlx {found[1]:.1e}")
    assert max(found) <= LOGITS_LIMIT


@pytest.mark.parametrize("changes", [
    {"sliding_window": 3}, {"sliding_window": 4096}, {"attn_logit_softcapping": 1.5}, {"final_logit_softcapping": 3.0},
    {"attn_logit_softcapping": None, "final_logit_softcapping": None}, {"query_pre_attn_scalar": 20}, {"num_key_value_heads": 4},
    {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
], ids=str)  # fmt: skip
def test_windows_caps_scales_and_layer_kinds_mean_what_they_mean_in_transformers(tmp_path, changes):
    pair = write_pair(tmp_path, config_json(2, **changes))
    inputs = random_inputs(pair.config, (12, 9, 5), (9, 4, 12))
    assert max(errors(pair, original(tmp_path), inputs)) <= LOGITS_LIMIT


def test_a_head_of_its_own_is_read_as_transformers_reads_it(tmp_path, generation):
    pair = write_pair(tmp_path, config_json(generation), own_head=True)
    assert max(errors(pair, original(tmp_path), random_inputs(pair.config, (9, 4), (3, 5)))) <= LOGITS_LIMIT


def test_what_save_pretrained_writes_of_a_loaded_model_is_read_back_the_same(tmp_path, pair, originals, generation):
    originals[generation].save_pretrained(tmp_path)
    assert any(key.startswith("vision_tower.vision_model.") for key in keys(tmp_path))  # the layout that was loaded
    assert_same_weights(Pair.load(tmp_path), pair)


def test_what_save_pretrained_writes_of_a_new_model_is_read(tmp_path, generation):
    config = transformers.PaliGemmaConfig(**config_json(generation))
    config._attn_implementation = "eager"
    model = transformers.PaliGemmaForConditionalGeneration(config).eval()
    fill(model.model, seed=7)
    model.save_pretrained(tmp_path)
    assert any(key.startswith("vision_tower.encoder.") for key in keys(tmp_path))  # transformers' own mixture of layouts
    pair = Pair.load(tmp_path)
    assert max(errors(pair, model, random_inputs(pair.config, (9, 4), (3, 5)))) <= LOGITS_LIMIT


@pytest.mark.parametrize("layout", ["4.52", "5"])
def test_the_names_that_transformers_gives_in_memory_are_read_the_same(tmp_path, pair, layout):
    names = {"4.52": ("model.vision_tower.vision_model.", "model.language_model."), "5": ("model.vision_tower.", "model.language_model.")}
    vision, text = names[layout]
    state = load_file(pair.folder / "model.safetensors")
    renamed = {key.replace("vision_tower.vision_model.", vision).replace("language_model.model.", text): tensor
               for key, tensor in state.items()}  # fmt: skip
    renamed = {key if key.startswith("model.") else f"model.{key}": tensor for key, tensor in renamed.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((pair.folder / "config.json").read_bytes())
    assert_same_weights(Pair.load(tmp_path), pair)


def test_our_names_are_those_of_a_folder_of_the_hub(pair):
    assert {canonical_name(key) for key in keys(pair.folder)} == set(expected_shapes(pair.config))
    assert all(key.startswith(("vision_tower.vision_model.", "multi_modal_projector.", "language_model.model."))
               for key in keys(pair.folder))  # fmt: skip


def keys(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        return list(file.keys())


def assert_same_weights(found: Pair, wanted: Pair) -> None:
    inputs = random_inputs(wanted.config, (6, 4), (3, 5))
    assert np.array_equal(torch_logits(found.reference, inputs), torch_logits(wanted.reference, inputs))
    assert np.array_equal(mlx_logits(found.model, inputs), mlx_logits(wanted.model, inputs))


@pytest.mark.parametrize("suffixes", [None, SUFFIXES], ids=["prompts", "prompts and suffixes"])
@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 3, 2)], ids=["one picture each", "several pictures"])
def test_our_processor_lays_a_batch_out_as_transformers_does(pairs, transformers_processor, suffixes, counts):
    pictures = [[picture(10 * row + i) for i in range(count)] for row, count in enumerate(counts)]
    ours = pairs[1].processor()(pictures, PROMPTS, suffixes)
    theirs = transformers_processor(
        images=pictures, text=["<image>" * count + prompt for count, prompt in zip(counts, PROMPTS, strict=True)], suffix=suffixes,
        padding="longest", return_tensors="np",
    )  # fmt: skip
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert np.array_equal(getattr(ours, name), theirs[name]), name
    if suffixes is not None:
        assert np.array_equal(ours.labels, theirs["labels"])
    mine = arguments(ours, pairs[1].config.vision.num_patches)["pixel_values"].numpy()
    assert np.array_equal(mine, theirs["pixel_values"])


def test_the_tiny_vocabulary_means_the_same_to_both_tokenizers(pairs, transformers_processor):
    ours = pairs[1].processor().tokenizer
    for text in (*PROMPTS, *SUFFIXES, "détecter le chat ☃", "  two  spaces", "wherein is a cat"):
        assert ours.encode(text) == transformers_processor.tokenizer.encode(text, add_special_tokens=False)
    assert transformers_processor.image_token_id == IMAGE_TOKEN
    assert vocabulary() == (pairs[1].folder / "tokenizer.model").read_bytes()


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, tuple(rng.integers(20, 90, 2)) + (3,), dtype=np.uint8))


def test_decoding_with_the_cache_equals_transformers_with_its_own(pair, originals, generation):
    """Rows of unlike lengths, beyond the window; transformers' sliding layers throw old keys away."""
    prompts = random_inputs(pair.config, (12, 9, 5))
    suffix = random_suffix(3, 24)
    wanted = original_logits(originals[generation], with_suffix(prompts, suffix), pair)[:, -25:]
    cached = original_decoded(originals[generation], prompts, suffix, pair)
    assert relative_error(cached, wanted) <= LOGITS_LIMIT
    for found in (torch_decoded(pair.reference, prompts, suffix, [1] * 24), mlx_decoded(pair.model, prompts, suffix, [1] * 24)):
        assert relative_error(found, cached) <= LOGITS_LIMIT


def original_decoded(model, prompts: ModelInputs, suffix: np.ndarray, pair: Pair) -> np.ndarray:
    """transformers' logits after the prompt and each suffix token, step by step as `generate` does it."""
    given = arguments(prompts, pair.config.vision.num_patches)
    seen = given["attention_mask"]
    with torch.no_grad():
        out = model(**given, use_cache=True)
        parts = [out.logits[:, -1:]]
        for token in torch.from_numpy(suffix).long().split(1, dim=1):
            seen = torch.cat([seen, torch.ones_like(token)], dim=1)
            out = model(input_ids=token, attention_mask=seen, past_key_values=out.past_key_values, use_cache=True)
            parts.append(out.logits)
    return torch.cat(parts, dim=1).numpy()
