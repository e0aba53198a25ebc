"""Folders that are written: the same numbers after any way there and back, read by transformers, whole or not at all."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from big_vision_files import arrays, as_numpy, write_npz
from checkpoints import IMAGE_TOKEN, LAYOUTS, config_json, in_layout, tensors, vocabulary, write
from packed_checkpoints import PADDED, affine, everything, of_mode, pack, text_alone, weights, with_wide_mlp, write_packed
from packed_checkpoints import config_json as wide_json
from parity.batches import random_inputs, tokens
from parity.compare import mlx_logits, relative_error
from parity.originals import PICTURES, PROMPTS, original, original_logits, transformers
from parity.tiny_models import Pair
from safetensors import safe_open
from safetensors.torch import load_file

from mlx_paligemma import converted_folder, generate, load
from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.errors import CheckpointError, OptionError
from mlx_paligemma.common.hub import bundled_checkpoint
from mlx_paligemma.common.mask_codec import FILE_NAME
from mlx_paligemma.common.processor import PaliGemmaProcessor
from mlx_paligemma.common.safetensors_files import INDEX_NAME
from mlx_paligemma.common.tensors import EMBEDDING, HEAD, PATCHES
from mlx_paligemma.common.tokenizer import PaliGemmaTokenizer
from mlx_paligemma.converted_folder import convert
from mlx_paligemma.demo.scenes import draw_scene
from mlx_paligemma.quantization import Recipe
from mlx_paligemma.weights import load_model

LIMIT = 5e-6  # of the largest logit, float32: the same numbers, packed and not
CONSUMER_LIMIT = 1e-5  # likewise, MLX against transformers
SMALL = 20_000  # bytes of a file: several files


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors by the names in the files."""
    return {name: array for path in sorted(folder.glob("*.safetensors")) for name, array in load_file(path).items()}


def assert_same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def by_hub_names(made: dict) -> dict:
    return {in_layout(name, "hub"): tensor for name, tensor in made.items()}


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "shards", "model_type"),
    [("float32", 1, "gemma"), ("bfloat16", 3, "gemma2"), ("float16", 2, "gemma"), ("bfloat16", 1, "gemma")],
)
def test_from_hf_to_mlx_and_back_every_bit_is_the_same(tmp_path, layout, dtype, shards, model_type):
    data = config_json(model_type)
    made = tensors(data, dtype=getattr(torch, dtype))
    write(tmp_path / "hf", made, data=data, layout=layout, shards=shards)
    convert(tmp_path / "hf", tmp_path / "mlx", shard_bytes=SMALL)
    convert(tmp_path / "mlx", tmp_path / "back", to="hf", shard_bytes=SMALL)
    assert (tmp_path / "mlx" / INDEX_NAME).exists() and (tmp_path / "back" / INDEX_NAME).exists()
    between = stored(tmp_path / "mlx")
    assert torch.equal(between[in_layout(PATCHES, "hub")], made[PATCHES].permute(0, 2, 3, 1))
    assert_same(stored(tmp_path / "back"), by_hub_names(made))
    assert PaliGemmaConfig.from_folder(tmp_path / "back") == PaliGemmaConfig.from_folder(tmp_path / "mlx")
    assert config_of(tmp_path / "back")["torch_dtype"] == dtype
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == vocabulary()


@pytest.mark.parametrize("to", ["mlx", "hf"])
def test_a_head_of_its_own_stays_and_one_that_is_the_embedding_is_dropped(tmp_path, to):
    own = tensors(head=True)
    equal = own | {HEAD: own[EMBEDDING].clone()}
    for name, made in (("own", own), ("equal", equal)):
        convert(write(tmp_path / name, made), tmp_path / f"{name} made", to=to)
    assert in_layout(HEAD, "hub") in stored(tmp_path / "own made") and not config_of(tmp_path / "own made")["tie_word_embeddings"]
    assert in_layout(HEAD, "hub") not in stored(tmp_path / "equal made")
    assert config_of(tmp_path / "equal made")["tie_word_embeddings"]


@pytest.mark.parametrize("prefix", ["", "params/"])
@pytest.mark.parametrize("model_type", ["gemma", "gemma2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_from_npz_to_hf_the_tensors_are_those_that_went_in(tmp_path, dtype, model_type, prefix):
    data = config_json(model_type)
    made = tensors(data, dtype=getattr(torch, dtype))
    config = PaliGemmaConfig.from_dict(data)
    write_npz(tmp_path / "model.npz", arrays(as_numpy(made), config, IMAGE_TOKEN), prefix=prefix)
    (tmp_path / "tokenizer.model").write_bytes(vocabulary())
    convert(tmp_path / "model.npz", tmp_path / "hf", to="hf", shard_bytes=SMALL)
    found, wanted = stored(tmp_path / "hf"), by_hub_names(made)
    table = in_layout(EMBEDDING, "hub")
    assert torch.equal(found.pop(table)[:IMAGE_TOKEN], wanted.pop(table)[:IMAGE_TOKEN])
    assert_same(found, wanted)


def float_logits(folder: Path, inputs) -> np.ndarray:
    return mlx_logits(load_model(read_checkpoint(folder), "float32"), inputs)[tokens(inputs)]


QUANTISED = {
    "4 bits": Recipe(),
    "3 bits, groups of 32": Recipe(3, 32),
    "vision too": Recipe(8, 128, vision=True),
    "mxfp4": Recipe(mode="mxfp4"),
    "nvfp4": Recipe(mode="nvfp4"),
    "mixed": Recipe(mixed="mixed_3_6"),
}


@pytest.mark.parametrize(
    ("recipe", "generation"), [(recipe, i % 2 + 1) for i, recipe in enumerate(QUANTISED.values())], ids=QUANTISED
)
@pytest.mark.parametrize("to", ["mlx", "hf"])
def test_quantised_and_unpacked_again_the_logits_are_the_same(tmp_path, recipe, generation, to):
    data = wide_json(generation)
    write(tmp_path / "source", torch_weights(data), data=data)
    convert(tmp_path / "source", tmp_path / "packed", recipe=recipe)
    convert(tmp_path / "packed", tmp_path / "whole", to=to, dtype="float32", dequantize=to == "mlx")
    assert not {"quantization", "quantization_config"} & config_of(tmp_path / "whole").keys()
    inputs = random_inputs(PaliGemmaConfig.from_dict(data), (9, 4), (3, 5))
    exact, found = float_logits(tmp_path / "source", inputs), float_logits(tmp_path / "packed", inputs)
    assert relative_error(float_logits(tmp_path / "whole", inputs), found) < LIMIT
    assert relative_error(found, exact) > 1e-3  # or nothing was quantised


def torch_weights(data: dict, head: str = "tied") -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in weights(data, head).items()}


@pytest.mark.parametrize("recipe", [None, *QUANTISED.values()], ids=["none", *QUANTISED])
def test_config_json_says_how_each_module_is_packed(tmp_path, recipe):
    data = wide_json(1)
    convert(write(tmp_path / "source", torch_weights(data), data=data), tmp_path / "made", recipe=recipe)
    said, checkpoint = config_of(tmp_path / "made"), read_checkpoint(tmp_path / "made")
    assert said.get("quantization") == said.get("quantization_config")
    assert ("quantization" in said) == bool(checkpoint.packings) == (recipe is not None)
    for module, packing in checkpoint.packings.items():
        name = in_layout(f"{module}.weight", "hub").removesuffix(".weight")
        assert (
            said["quantization"].get(name) or {key: said["quantization"][key] for key in packing.settings()}
        ) == packing.settings()
    assert said["vision_config"]["intermediate_size"] == (PADDED if recipe and recipe.vision else 100)


@pytest.mark.parametrize("form", [affine(4), of_mode("mxfp8")], ids=str)
def test_a_folder_of_mlx_community_is_carried_over_packed_and_unpacked_for_others(tmp_path, form):
    made = with_wide_mlp(weights(wide_json(1)))
    packed = pack(made, everything(form), mx.bfloat16)
    write_packed(tmp_path / "old", packed, wide_json(1, {"intermediate_size": PADDED, "skip_vision": True}), None)
    convert(tmp_path / "old", tmp_path / "new", dtype="float32")  # else the position table would be rounded
    convert(tmp_path / "old", tmp_path / "hf", to="hf", dtype="float32")
    inputs = random_inputs(PaliGemmaConfig.from_dict(wide_json(1)), (9, 4), (3, 5))
    wanted = float_logits(tmp_path / "old", inputs)
    assert np.array_equal(float_logits(tmp_path / "new", inputs), wanted)
    assert relative_error(float_logits(tmp_path / "hf", inputs), wanted) < LIMIT
    assert "skip_vision" not in config_of(tmp_path / "new")["vision_config"]


@pytest.mark.parametrize("to", ["mlx", "hf"])
def test_the_metadata_says_for_whom_the_files_are(tmp_path, to):
    convert(write(tmp_path / "source"), tmp_path / "made", to=to)
    with safe_open(tmp_path / "made" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": {"mlx": "mlx", "hf": "pt"}[to]}


def hf_folder(tmp_path: Path, generation: int, source: str) -> Path:
    """What `--to hf` makes of a checkpoint that MLX has quantised, or of a plain one."""
    data = wide_json(generation)
    if source == "quantised":
        write_packed(tmp_path / "source", pack(weights(data), text_alone(affine(4)), mx.float16), data, affine(4))
    else:
        write(tmp_path / "source", torch_weights(data, "own" if source == "own head" else "tied"), data=data, layout="5.x")
    convert(tmp_path / "source", tmp_path / "hf", to="hf", dtype="float32", shard_bytes=300_000)
    return tmp_path / "hf"


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("source", ["plain", "own head", "quantised"])
def test_transformers_loads_the_folder_and_gives_the_same_logits(tmp_path, generation, source):
    folder = hf_folder(tmp_path, generation, source)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    _, said = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, local_files_only=True, output_loading_info=True
    )
    assert not any(said[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pair = Pair.load(folder)
    inputs = random_inputs(pair.config, (12, 9, 5), (9, 4, 12), (1, 2, 1))
    real = tokens(inputs)
    wanted = original_logits(original(folder), inputs, pair)[real]
    assert relative_error(mlx_logits(pair.model, inputs)[real], wanted) < CONSUMER_LIMIT
    assert relative_error(float_logits(tmp_path / "source", inputs), wanted) < CONSUMER_LIMIT


@pytest.mark.parametrize("generation", [1, 2])
def test_transformers_processor_makes_the_same_ids_and_pixels(tmp_path, generation):
    folder = hf_folder(tmp_path, generation, "plain")
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    ours = PaliGemmaProcessor(PaliGemmaConfig.from_folder(folder), PaliGemmaTokenizer.from_folder(folder))(PICTURES, PROMPTS)
    prompts = ["<image>" * len(pictures) + prompt for pictures, prompt in zip(PICTURES, PROMPTS, strict=True)]
    theirs = processor(images=PICTURES, text=prompts, padding="longest", padding_side="left", return_tensors="np")
    assert np.array_equal(ours.input_ids, theirs["input_ids"])
    pixels = np.concatenate([row[: len(pictures)] for row, pictures in zip(ours.pixel_values, PICTURES, strict=True)])
    assert np.array_equal(pixels.transpose(0, 3, 1, 2), theirs["pixel_values"])


def test_the_demo_answers_the_same_after_any_way_there_and_back(tmp_path):
    convert(None, tmp_path / "mlx", shard_bytes=10**6)
    convert(tmp_path / "mlx", tmp_path / "hf", to="hf")
    assert_same(stored(tmp_path / "hf"), stored(bundled_checkpoint()))
    scene = draw_scene(np.random.default_rng(3))
    answers = [generate(*load(folder, dtype="float32"), scene.image, "segment star") for folder in (None, tmp_path / "hf")]
    assert answers[0].token_ids == answers[1].token_ids
    assert (tmp_path / "hf" / FILE_NAME).read_bytes() == (bundled_checkpoint() / FILE_NAME).read_bytes()


def test_files_that_the_source_has_are_kept_and_those_that_it_lacks_are_made(tmp_path):
    source = write(tmp_path / "source")
    (source / "generation_config.json").write_text('{"max_new_tokens": 5}')
    (source / "notes.txt").write_text("mine")
    convert(source, tmp_path / "made")
    assert (tmp_path / "made" / "generation_config.json").read_text() == '{"max_new_tokens": 5}'
    names = {path.name for path in (tmp_path / "made").iterdir()}
    made = {"README.md", "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
            "special_tokens_map.json", "added_tokens.json", "generation_config.json", "model.safetensors"}  # fmt: skip
    assert names == made


def test_the_card_keeps_the_licence_and_says_what_was_done(tmp_path):
    data = wide_json(1)
    source = write(tmp_path / "source", torch_weights(data), data=data)
    (source / "README.md").write_text("---\nlicense: gemma\nlanguage: en\n---\n\n# Theirs\n")
    convert(source, tmp_path / "my-model", recipe=Recipe())
    card = (tmp_path / "my-model" / "README.md").read_text()
    assert "license: gemma" in card and "language: en" in card and "# my-model" in card and "4-bit, groups of 64" in card
    assert str(tmp_path) not in card
    convert(tmp_path / "my-model", tmp_path / "whole", dequantize=True)
    assert "stored in bfloat16" in (tmp_path / "whole" / "README.md").read_text()


def test_converting_twice_gives_the_same_bytes(tmp_path):
    data = wide_json(1)
    source = write(tmp_path / "source", torch_weights(data), data=data)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        convert(source, tmp_path / name / "model", recipe=Recipe(), shard_bytes=300_000)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name / "model").iterdir()} for name in ("one", "two"))
    assert one == two and len(one) > 10


REFUSED = {
    "nothing": (lambda source: source.joinpath("config.json").unlink(), "has no config.json"),
    "no vocabulary": (lambda source: source.joinpath("tokenizer.model").unlink(), "tokenizer.model"),
    "another vocabulary": (
        lambda source: source.joinpath("config.json").write_text(json.dumps(config_json(image_token_index=IMAGE_TOKEN - 1))),
        "image_token_index",
    ),
    "half a file": (
        lambda source: source.joinpath("model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"),
        "not a whole safetensors",
    ),
}


@pytest.mark.parametrize(("damage", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_source_is_refused_before_a_weight_is_read_and_nothing_is_left(tmp_path, monkeypatch, damage, words):
    source = write(tmp_path / "source")
    damage(source)
    monkeypatch.setattr("mlx_paligemma.conversion.read_in_order", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(CheckpointError) as error:
        convert(source, tmp_path / "made")
    assert words in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_target_with_files_is_left_alone_unless_it_may_be_replaced(tmp_path):
    source, target = write(tmp_path / "source"), tmp_path / "made"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty; --overwrite replaces it"):
        convert(source, target)
    assert [path.name for path in target.iterdir()] == ["mine.txt"]
    convert(source, target, overwrite=True)
    assert not (target / "mine.txt").exists() and (target / "model.safetensors").exists()


def test_what_goes_wrong_halfway_leaves_the_old_folder_whole(tmp_path, monkeypatch):
    source, target = write(tmp_path / "source"), tmp_path / "made"
    convert(source, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    monkeypatch.setattr(converted_folder.ShardWriter, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, overwrite=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "source"]


def test_a_number_that_is_not_finite_leaves_nothing_behind(tmp_path):
    made = tensors()
    made[EMBEDDING][5, 3] = float("nan")
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight holds NaN"):
        convert(write(tmp_path / "source", made), tmp_path / "made", check_finite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_disk_space_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    asked = []
    real = converted_folder.new_folder
    monkeypatch.setattr(
        converted_folder, "new_folder", lambda target, needed, *rest: asked.append(needed) or real(target, needed, *rest)
    )
    data = wide_json(2)
    source = write(tmp_path / "source", torch_weights(data, "own"), data=data)
    for name, wishes in {"plain": {}, "half": {"dtype": "bfloat16"}, "packed": {"recipe": Recipe(3)}}.items():
        convert(source, tmp_path / name, **wishes)
        weight_bytes = sum(array.nbytes for array in stored(tmp_path / name).values())
        assert asked.pop() - converted_folder.SIDE_BYTES == pytest.approx(weight_bytes, rel=0.01), name


def test_a_wish_that_cannot_be_met_is_refused_before_the_target_is_touched(tmp_path):
    with pytest.raises(OptionError, match="no layer of this model can be quantised"):
        convert(write(tmp_path / "source"), tmp_path / "made", recipe=Recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_folder_beside_the_npz_is_a_good_place_and_the_one_that_holds_it_is_not(tmp_path):
    data = config_json()
    source = write_npz(tmp_path / "model.npz", arrays(as_numpy(tensors(data)), PaliGemmaConfig.from_dict(data), IMAGE_TOKEN))
    (tmp_path / "tokenizer.model").write_bytes(vocabulary())
    convert(source, tmp_path / "made")
    with pytest.raises(CheckpointError, match="which is read; choose another folder"):
        convert(source, tmp_path, overwrite=True)
    assert source.exists()
