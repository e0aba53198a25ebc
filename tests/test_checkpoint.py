"""A checkpoint is found, and every name, shape and number kind in it is right, or one line says what is wrong and what to do."""

import json

import pytest
import torch
from checkpoints import IMAGE_TOKEN, LAYOUTS, config_json, in_layout, tensors, write
from safetensors.torch import load, save_file

from mlx_paligemma.common.checkpoint import check_dtype, read_checkpoint
from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.errors import CheckpointError, OptionError
from mlx_paligemma.common.safetensors_files import INDEX_NAME
from mlx_paligemma.common.tensors import EMBEDDING, HEAD, PATCHES, canonical_name, expected_shapes

WEIGHTS = "model.safetensors"
NORM = "language_model.norm.weight"


@pytest.fixture
def folder(tmp_path):
    """A good checkpoint in one file, to be damaged."""
    return write(tmp_path / "checkpoint")


@pytest.fixture
def shards(tmp_path):
    """A good checkpoint in three files and an index, to be damaged."""
    return write(tmp_path / "checkpoint", shards=3)


def complaint(folder, *words) -> str:
    """The one line with which the folder is refused; it must hold all `words`."""
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(folder)
    message = str(error.value)
    assert "\n" not in message
    assert str(folder) in message
    assert all(word in message for word in words), message
    return message


def change(folder, function, file=WEIGHTS):
    """Let `function` change the tensors of a file."""
    held = load((folder / file).read_bytes())
    function(held)
    save_file(held, folder / file)


def change_index(folder, function):
    data = json.loads((folder / INDEX_NAME).read_text())
    function(data)
    (folder / INDEX_NAME).write_text(json.dumps(data))


@pytest.mark.parametrize("model_type", ["gemma", "gemma2"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shards", "index"), [(1, False), (3, True), (3, False)], ids=["one file", "index", "no index"])
def test_every_layout_is_read_under_our_names(tmp_path, layout, shards, index, model_type):
    data = config_json(model_type)
    weights = tensors(data, head=True)
    found = read_checkpoint(write(tmp_path, weights, data=data, layout=layout, shards=shards, index=index))
    assert {name: info.shape for name, info in found.tensors.items()} == {name: tuple(w.shape) for name, w in weights.items()}
    assert {info.key for info in found.tensors.values()} == {in_layout(name, layout) for name in weights}
    assert len(found.files()) == shards
    assert sum(map(len, found.files().values())) == len(weights)


@pytest.mark.parametrize("prefix", ["", "model.", "language_model.", "model.language_model."])
def test_a_head_is_known_under_any_prefix(prefix):
    assert canonical_name(f"{prefix}lm_head.weight") == HEAD


def test_the_released_sizes_have_as_many_tensors_as_the_published_files():
    def count(model_type, layers):
        text = {"model_type": model_type, "hidden_size": 2048, "intermediate_size": 9, "num_hidden_layers": layers}
        return len(expected_shapes(PaliGemmaConfig.from_dict({"model_type": "paligemma", "text_config": text})))

    assert [count("gemma", 18), count("gemma2", 26), count("gemma2", 42), count("gemma2", 46)] == [603, 727, 903, 947]


def test_buffers_that_old_files_carry_are_ignored(folder):
    def add_buffers(held):
        held["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(4)[None]
        held["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4, dtype=torch.float64)

    change(folder, add_buffers)
    assert read_checkpoint(folder).tensors.keys() == tensors().keys()


@pytest.mark.parametrize("name", [NORM, PATCHES, EMBEDDING, "vision_tower.encoder.layers.1.mlp.fc1.bias"])
def test_a_missing_tensor_is_named(folder, name):
    change(folder, lambda held: held.pop(in_layout(name, "hub")))
    complaint(folder, f"lacks {name};", "do not belong together")


def test_several_missing_tensors_are_counted(folder):
    change(folder, lambda held: [held.pop(key) for key in list(held) if "layers.1.mlp" in key])
    complaint(folder, "lacks vision_tower.encoder.layers.1.mlp.", "and 6 more")


@pytest.mark.parametrize("key", ["language_model.model.layers.2.mlp.up_proj.weight", "vision_tower.head.probe", "unheard.of"])
def test_an_unknown_tensor_is_named_as_in_the_file(folder, key):
    change(folder, lambda held: held.update({key: torch.zeros(2)}))
    complaint(folder, f"has unknown {key};")


def test_a_gemma_2_checkpoint_is_no_gemma_1(tmp_path):
    write(tmp_path, tensors(config_json("gemma2")), data=config_json("gemma"))
    complaint(tmp_path, "has unknown language_model.model.layers.0.p", "_feedforward_layernorm.weight and 3 more")


def test_a_tensor_that_is_there_in_two_layouts_is_refused(folder):
    change(folder, lambda held: held.update({"model.language_model.norm.weight": torch.zeros(16)}))
    complaint(folder, "model.language_model.norm.weight", "language_model.model.norm.weight", "there twice")


def test_a_tensor_that_is_there_in_two_files_is_refused(folder):
    save_file({"language_model.model.norm.weight": torch.zeros(16)}, folder / "other.safetensors")
    complaint(folder, "language_model.model.norm.weight", "there twice", "other.safetensors", WEIGHTS)


DAMAGES = {
    "one more": lambda tensor: torch.zeros(tensor.shape[0] + 1, *tensor.shape[1:]),
    "one less": lambda tensor: torch.zeros(*tensor.shape[:-1], tensor.shape[-1] - 1),
    "flat": lambda tensor: torch.zeros(tensor.numel(), 1),
    "reversed": lambda tensor: torch.zeros(tensor.shape[::-1]),
}


@pytest.mark.parametrize("name", [EMBEDDING, PATCHES, HEAD, NORM, "multi_modal_projector.linear.bias"])
def test_a_tensor_of_another_shape_is_refused(tmp_path, name):
    weights = tensors(head=True)
    right = weights[name]
    for damage in list(DAMAGES)[: 3 if right.ndim == 1 else 4]:  # a vector reversed has the same shape
        weights[name] = DAMAGES[damage](right)
        write(tmp_path, weights)
        shapes = f"has shape {tuple(weights[name].shape)}, config.json asks for {tuple(right.shape)}"
        complaint(tmp_path, str(tmp_path / WEIGHTS), in_layout(name, "hub"), shapes)


def test_a_patch_kernel_with_channels_last_is_known_as_such(tmp_path):
    weights = tensors()
    assert not read_checkpoint(write(tmp_path, weights)).channels_last
    weights[PATCHES] = weights[PATCHES].permute(0, 2, 3, 1).contiguous()
    assert read_checkpoint(write(tmp_path, weights)).channels_last


@pytest.mark.parametrize("cut", [0, 4, 8, 200, 20000, -1])
def test_a_truncated_file_is_named(folder, cut):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:cut])
    complaint(folder, str(folder / WEIGHTS), "not a whole safetensors file", "copy it again")


def test_a_file_that_is_no_safetensors_is_named(folder):
    (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    complaint(folder, str(folder / WEIGHTS), "not a whole safetensors file")


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path, index):
    write(tmp_path, shards=3, index=index)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    complaint(tmp_path, str(tmp_path / "model-00002-of-00003.safetensors"), "is missing; copy this shard")


def test_shards_of_another_name_are_counted_too(tmp_path):
    write(tmp_path, shards=2, index=False)
    (tmp_path / "model-00001-of-00002.safetensors").rename(tmp_path / "weights-00001-of-00002.safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").rename(tmp_path / "weights-00002-of-00002.safetensors")
    assert len(read_checkpoint(tmp_path).files()) == 2
    (tmp_path / "weights-00001-of-00002.safetensors").unlink()
    complaint(tmp_path, "weights-00001-of-00002.safetensors is missing")


def test_files_that_the_index_does_not_name_are_left_alone(shards):
    save_file({"unheard.of": torch.zeros(1)}, shards / "adapter.safetensors")
    assert len(read_checkpoint(shards).files()) == 3


INDICES = [b"", b"{", b"\xff\xfe", b"[]", b"5", b'"text"', b"{}", b'{"weight_map": 5}', b'{"weight_map": []}', b"[" * 100_000,
           b'{"weight_map": null}']  # fmt: skip


@pytest.mark.parametrize("content", INDICES, ids=range(len(INDICES)))
def test_a_broken_index_is_named(shards, content):
    (shards / INDEX_NAME).write_bytes(content)
    complaint(shards, str(shards / INDEX_NAME), "cannot be read; copy it again")


def test_an_index_that_names_nothing_is_named(shards):
    change_index(shards, lambda data: data.update(weight_map={}))
    complaint(shards, INDEX_NAME, "names no file")


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "model.bin", "", None, 5, {}]
)
def test_an_index_that_points_out_of_its_folder_is_refused(tmp_path, shards, name):
    write(tmp_path / "other")
    change_index(shards, lambda data: data["weight_map"].update({"language_model.model.norm.weight": name}))
    complaint(shards, INDEX_NAME, f"names {str(name)!r}, which is no .safetensors file of this folder")


UP = "language_model.model.layers.0.mlp.up_proj"  # [24, 16]


def pack(held, **changes):
    """Weights of 4 bits, with changes that no converter makes."""
    parts = {"weight": torch.zeros((24, 2), dtype=torch.uint32)} | {part: torch.zeros((24, 1)) for part in ("scales", "biases")}
    for part, tensor in (parts | changes).items():
        held.pop(f"{UP}.{part}", None)
        held |= {} if tensor is None else {f"{UP}.{part}": tensor}


PACKED_FAULTS = {
    "no scales": ({"scales": None}, "unknown", "up_proj.biases"),
    "a weight that is not packed": ({"weight": torch.zeros(24, 16)}, "up_proj.weight is packed in no known form"),
    "groups that no form has": ({}, "up_proj.weight is packed in no known form", "for 16 columns"),
    "other rows": ({"weight": torch.zeros((20, 2), dtype=torch.uint32)}, "is packed in no known form"),
    "codes without a scale at all": ({"scales": None, "biases": None}, "up_proj.weight is uint32", "packed and with scales"),
}


@pytest.mark.parametrize("fault", PACKED_FAULTS)
def test_packed_weights_of_another_form_are_refused(folder, fault):
    changes, *words = PACKED_FAULTS[fault]
    change(folder, lambda held: pack(held, **changes))
    complaint(folder, *words)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int64, torch.bool])
def test_numbers_of_another_kind_are_refused(folder, dtype):
    change(folder, lambda held: held.update({"language_model.model.norm.weight": torch.zeros(16, dtype=dtype)}))
    complaint(folder, WEIGHTS, "language_model.model.norm.weight is ", "weights must be float32, bfloat16 or float16")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickled_weights_are_refused_with_the_reason(folder, name):
    (folder / WEIGHTS).rename(folder / name)
    complaint(folder, "no .safetensors file", "can run programs", "safetensors")


def test_a_folder_without_weights_is_named(folder):
    (folder / WEIGHTS).unlink()
    complaint(folder, "has no .safetensors file; copy the weights there")


def test_an_untied_model_without_a_head_is_refused(tmp_path):
    write(tmp_path, data=config_json(tie_word_embeddings=False))
    complaint(tmp_path, f"lacks {HEAD};")


def test_an_image_token_outside_the_table_is_refused(tmp_path):
    data = config_json(text={"vocab_size": IMAGE_TOKEN})
    write(tmp_path, data=data)
    complaint(tmp_path, "config.json", f"image_token_index {IMAGE_TOKEN} lies outside the vocabulary of {IMAGE_TOKEN} rows")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_of_a_checkpoint_is_that_of_its_embedding(tmp_path, dtype):
    weights = tensors(dtype=getattr(torch, dtype))
    weights[NORM] = weights[NORM].float()
    assert read_checkpoint(write(tmp_path, weights, data=config_json(torch_dtype="float64"))).dtype == dtype


@pytest.mark.parametrize("dtype", ["float64", "int8", "bf16", "", 5, None, torch.float32])
def test_only_three_dtypes_can_be_computed_in(dtype):
    with pytest.raises(OptionError, match="choose float32, bfloat16 or float16"):
        check_dtype(dtype)
