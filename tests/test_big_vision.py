"""A checkpoint of big_vision gives the tensors that were put into it, or one line says what is wrong and what to do."""

import struct
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from big_vision_files import arrays, as_numpy, cut, write_npz
from checkpoints import IMAGE_TOKEN, ROWS, config_json, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_paligemma.common.big_vision import big_vision_arrays, read_big_vision
from mlx_paligemma.common.big_vision_layout import sources
from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.tensors import EMBEDDING, expected_shapes

DTYPES = ["float32", "float16", "bfloat16"]
TABLE, Q, NORM = "llm/embedder/input_embedding", "llm/layers/attn/q_einsum/w", "llm/final_norm/scale"
GROUPED = {"num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 3}


def made(model_type="gemma", dtype="float32", **text):
    """The arrays of a tiny checkpoint, and its tensors as they must come out again."""
    data = config_json(model_type, text=text, vision={"num_hidden_layers": 2})
    ours = as_numpy(tensors(data, dtype=getattr(torch, dtype)))
    return arrays(ours, PaliGemmaConfig.from_dict(data), IMAGE_TOKEN), ours


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.npz"


def complaint(path, *words) -> str:
    """The one line with which the file is refused, by both functions; it must hold all `words`."""
    with pytest.raises(CheckpointError) as error:
        list(big_vision_arrays(path))
    message = str(error.value)
    assert message.isprintable()
    assert all(word in message for word in (str(path), *words)), message
    with pytest.raises(CheckpointError) as error:
        read_big_vision(path)
    assert str(error.value) == message
    return message


def same_numbers(found, ours):
    assert found.keys() == ours.keys()
    for name, array in ours.items():
        tokens = IMAGE_TOKEN if name == EMBEDDING else None
        assert found[name].shape == array.shape, name
        assert found[name].dtype == array.dtype, name
        assert found[name].flags.c_contiguous, name
        assert np.array_equal(found[name][:tokens], array[:tokens]), name


@pytest.mark.parametrize("model_type", ["gemma", "gemma2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("deflated", [False, True], ids=["stored", "deflated"])
@pytest.mark.parametrize("prefix", ["", "params/"])
def test_what_is_written_is_read_bit_by_bit(path, model_type, dtype, deflated, prefix):
    theirs, ours = made(model_type, dtype, **GROUPED)
    write_npz(path, theirs, prefix=prefix, deflated=deflated)
    same_numbers(dict(big_vision_arrays(path)), ours)
    config, infos = read_big_vision(path)
    assert replace(config, dtype=None) == PaliGemmaConfig.from_dict(config_json(model_type, text=GROUPED))
    assert config.dtype == dtype
    assert {name: info.shape for name, info in infos.items()} == {name: array.shape for name, array in ours.items()}
    assert {info.key for info in infos.values()} == {f"{prefix}{name}" for name in theirs}
    assert {(info.file, info.dtype) for info in infos.values()} == {(path, dtype)}


def test_types_may_be_mixed(path):
    theirs, _ = made()
    write_npz(path, theirs | {NORM: theirs[NORM].astype(np.float16)})
    infos = read_big_vision(path)[1]
    assert infos["language_model.norm.weight"].dtype == "float16"
    assert infos["language_model.layers.0.mlp.up_proj.weight"].dtype == "float32"
    assert dict(big_vision_arrays(path))["language_model.norm.weight"].dtype == np.float16


@pytest.mark.parametrize("deflated", [False, True], ids=["stored", "deflated"])
def test_pieces_are_read_as_one_wherever_they_are_cut(path, deflated):
    theirs, ours = made("gemma2")
    size = write_npz(path, theirs, deflated=deflated).stat().st_size
    pieces = cut(path, [1, 31, 31, 4097, size // 2 | 1, size - 3])
    assert len(pieces) == 7
    for name in (path.parent, path, pieces[0], pieces[-1]):
        same_numbers(dict(big_vision_arrays(name)), ours)
        assert {info.file for info in read_big_vision(name)[1].values()} == {pieces[0]}


RELEASED = {  # width, layers, heads, key-value heads, head_dim, intermediate_size; and the query scale
    "gemma": (2048, 18, 8, 1, 256, 16384, 256),
    "gemma2 2B": (2304, 26, 8, 4, 256, 9216, 256),
    "gemma2 9B": (3584, 42, 16, 8, 256, 14336, 256),
    "gemma2 27B": (4608, 46, 32, 16, 128, 36864, 144),
}


def released_shapes(name, picture):
    width, layers, heads, groups, size, wide, _ = RELEASED[name]
    encoder, block = "img/Transformer/", "img/Transformer/encoderblock/"
    attention = f"{block}MultiHeadDotProductAttention_0/"
    shapes = {
        "img/embedding/kernel": (14, 14, 3, 1152), "img/embedding/bias": (1152,),
        "img/pos_embedding": (1, (picture // 14) ** 2, 1152), f"{encoder}encoder_norm/scale": (1152,),
        f"{encoder}encoder_norm/bias": (1152,), f"{attention}out/kernel": (27, 16, 72, 1152), f"{attention}out/bias": (27, 1152),
        f"{block}MlpBlock_0/Dense_0/kernel": (27, 1152, 4304), f"{block}MlpBlock_0/Dense_0/bias": (27, 4304),
        f"{block}MlpBlock_0/Dense_1/kernel": (27, 4304, 1152), f"{block}MlpBlock_0/Dense_1/bias": (27, 1152),
        "img/head/kernel": (1152, width), "img/head/bias": (width,), TABLE: (257152, width), NORM: (width,),
        Q: (layers, heads, width, size), "llm/layers/attn/kv_einsum/w": (layers, 2, groups, width, size),
        "llm/layers/attn/attn_vec_einsum/w": (layers, heads, size, width),
        "llm/layers/mlp/gating_einsum": (layers, 2, width, wide), "llm/layers/mlp/linear": (layers, wide, width),
    }  # fmt: skip
    shapes |= {f"{attention}{side}/kernel": (27, 1152, 16, 72) for side in ("query", "key", "value")}
    shapes |= {f"{attention}{side}/bias": (27, 16, 72) for side in ("query", "key", "value")}
    shapes |= {f"{block}LayerNorm_{i}/{part}": (27, 1152) for i in (0, 1) for part in ("scale", "bias")}
    norms = ["pre_attention", "pre_ffw"] + (["post_attention", "post_ffw"] if name != "gemma" else [])
    return shapes | {f"llm/layers/{norm}_norm/scale": (layers, width) for norm in norms}


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("picture", [224, 448, 896])
def test_the_released_variants_are_known_by_their_shapes(path, monkeypatch, name, picture):
    from mlx_paligemma.common.npz import NpzFile, NpzHeader

    shapes = released_shapes(name, picture)
    write_npz(path, {array: np.zeros(1, np.float32) for array in shapes})
    monkeypatch.setattr(NpzFile, "header", lambda _, key: NpzHeader(shapes[key.removeprefix("params/")], "bfloat16", 128))
    config, infos = read_big_vision(path)
    text = {"model_type": name.split(maxsplit=1)[0]}
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    text |= dict(zip(names, RELEASED[name], strict=False))
    wanted = PaliGemmaConfig.from_dict({"model_type": "paligemma", "text_config": text, "vision_config": {"image_size": picture},
                                        "dtype": "bfloat16"})  # fmt: skip
    assert config == wanted  # with 257216 rows and image token 257152
    assert config.text.query_pre_attn_scalar == RELEASED[name][-1]
    assert {name: info.shape for name, info in infos.items()} == expected_shapes(wanted)


@pytest.mark.parametrize(("tokens", "rows"), [(62, 64), (63, 128), (64, 128), (126, 128), (257152, 257216)])
def test_the_table_grows_to_a_multiple_of_64_with_room_for_the_image_token(path, tokens, rows):
    theirs, _ = made()
    write_npz(path, theirs | {TABLE: np.ones((tokens, 16), np.float16)})
    config, infos = read_big_vision(path)
    assert (config.image_token_index, config.text.vocab_size) == (tokens, rows)
    assert infos[EMBEDDING].shape == (rows, 16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rows_that_are_added_are_the_mean_of_the_others(path, dtype):
    numbers = torch.from_numpy(np.random.default_rng(2).normal(0.1, 1, (9000, 16))).to(getattr(torch, dtype))
    theirs, _ = made()
    write_npz(path, theirs | as_numpy({TABLE: numbers}))
    added = next(big_vision_arrays(path))[1][9000:]
    mean = as_numpy({"mean": numbers.double().mean(0).to(numbers.dtype)})["mean"]
    assert len(added) == 24
    if dtype == "float32":  # 9,000 terms summed in float32
        assert np.abs(added - mean).max() < 1e-6
    else:  # a step of the last bit, where the mean lies half-way between two numbers
        assert np.abs(added.view(np.int16).astype(int) - mean.view(np.int16)).max() <= 1


@pytest.mark.parametrize(("ones", "rounded"), [(3, 1.0), (2, 1.0), (1, 1.0078125)])
def test_a_mean_between_two_numbers_is_rounded_to_the_nearer_or_the_even_one(path, ones, rounded):
    numbers = torch.tensor([1.0] * ones + [1.0078125] * (4 - ones), dtype=torch.bfloat16)[:, None].expand(4, 16)  # neighbours
    theirs, _ = made()
    write_npz(path, theirs | as_numpy({TABLE: numbers.repeat(10, 1)}))
    added = torch.from_numpy(next(big_vision_arrays(path))[1][40:]).view(torch.bfloat16)
    assert torch.equal(added, torch.full((24, 16), rounded, dtype=torch.bfloat16))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_so_in_the_mean(path, dtype, value):
    theirs, _ = made()
    table = torch.full((100, 16), value).to(getattr(torch, dtype))
    write_npz(path, theirs | as_numpy({TABLE: table}))
    added = next(big_vision_arrays(path))[1][100:]
    as_torch = torch.from_numpy(added).view(torch.bfloat16) if dtype == "bfloat16" else torch.from_numpy(added)
    assert torch.equal(as_torch.float().nan_to_num(7, 8, 9), torch.full((28, 16), value).nan_to_num(7, 8, 9))


def test_the_optimizers_arrays_are_left_alone(path):
    theirs, ours = made()
    extra = {"opt/0/count": np.array(7), "opt/1/mu": np.ones(3), "opt/2": np.array([{}], dtype=object)}
    write_npz(path, {f"params/{name}": array for name, array in theirs.items()} | extra, prefix="")
    same_numbers(dict(big_vision_arrays(path)), ours)


@pytest.mark.parametrize("key", ["txt/embedding", "llm/layers/attn/qkv_einsum/w", "params/opt", "step", "a\nb\x1b[2J"])
def test_an_array_that_no_paligemma_has_is_named(path, key):
    theirs, _ = made()
    complaint(write_npz(path, theirs | {key: np.ones(1)}), "has unknown", ascii(key)[1:-1], "no PaliGemma checkpoint")


@pytest.mark.parametrize("name", [TABLE, NORM, "img/head/bias", "llm/layers/pre_ffw_norm/scale", "img/pos_embedding"])
def test_a_missing_array_is_named(path, name):
    theirs, _ = made()
    theirs.pop(name)
    complaint(write_npz(path, theirs), f"lacks {name};", "no PaliGemma checkpoint of big_vision")


def test_half_of_gemma_2_is_neither_model(path):
    theirs, _ = made("gemma2")
    theirs.pop("llm/layers/post_ffw_norm/scale")
    complaint(write_npz(path, theirs), "lacks llm/layers/post_ffw_norm/scale")
    theirs.pop("llm/layers/post_attention_norm/scale")
    read_big_vision(write_npz(path, theirs))  # what is left is a whole Gemma
    theirs["llm/layers/post_ffw_norm/scale"] = np.ones((2, 16), np.float32)
    complaint(write_npz(path, theirs), "has unknown params/llm/layers/post_ffw_norm/scale")


def test_an_array_with_and_without_prefix_is_refused(path):
    theirs, _ = made()
    complaint(write_npz(path, theirs | {f"params/{NORM}": theirs[NORM]}, prefix=""), NORM, "there twice (also under params/)")


def test_a_file_of_another_model_is_no_paligemma(path):
    complaint(write_npz(path, {"_vq_vae._embedding": np.ones((128, 4))}), "lacks llm/embedder/input_embedding and 3")


DAMAGES = {
    "one layer more": lambda array: np.concatenate([array, array[:1]]),
    "one number less": lambda array: array[..., :-1],
    "flat": lambda array: array.reshape(-1),
    "an axis more": lambda array: array[None],
    "empty": lambda array: array[:0],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["llm/layers/attn/kv_einsum/w", "llm/layers/mlp/linear", "img/head/kernel", "img/pos_embedding",
                                  "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/key/bias"])  # fmt: skip
def test_an_array_of_another_shape_is_refused(path, name, damage):
    theirs, _ = made(num_key_value_heads=2, num_attention_heads=4)
    theirs[name] = DAMAGES[damage](theirs[name])
    complaint(write_npz(path, theirs), "has shape (")


def test_an_empty_table_is_refused(path):
    theirs, _ = made()
    complaint(write_npz(path, theirs | {TABLE: np.ones((0, 16), np.float32)}), f"{TABLE} has shape (0, 16); it should have 2 axes")


IMPOSSIBLE = {
    "5 patches of 14 x 14 pixels make no square picture": {"img/pos_embedding": (1, 5, 16)},
    "4 patches of 14 x 7 pixels make no square picture": {"img/embedding/kernel": (14, 7, 3, 16)},
    "num_attention_heads is not a multiple of num_key_value_heads": {"llm/layers/attn/kv_einsum/w": (2, 2, 4, 16, 8)},
    "3 vision heads of 8 do not make a hidden_size of 16": {
        f"img/Transformer/encoderblock/MultiHeadDotProductAttention_0/{side}/{part}": shape
        for side in ("query", "key", "value", "out")
        for part, shape in {"kernel": (2, 3, 8, 16) if side == "out" else (2, 16, 3, 8), "bias": (2, 3, 8)}.items()
        if (side, part) != ("out", "bias")
    },
}


@pytest.mark.parametrize("problem", IMPOSSIBLE)
def test_shapes_that_no_paligemma_has_are_refused(path, problem):
    theirs, _ = made()
    theirs |= {name: np.ones(shape, np.float32) for name, shape in IMPOSSIBLE[problem].items()}
    complaint(write_npz(path, theirs), "the shapes are those of no PaliGemma", problem)


def test_a_file_cannot_claim_layers_without_end(path):
    sizes = {"L": 100_000, "2": 2, "3": 3}
    theirs = {source.array: np.zeros([sizes.get(axis, 1) for axis in source.axes], np.float16) for source in sources(gemma2=True)}
    complaint(write_npz(path, theirs, deflated=True), "100000 layers")


@pytest.mark.parametrize("dtype", ["float64", "int32", "uint16", "bool", ">f4", "complex64", "V4", "U2"])
def test_numbers_of_another_kind_are_refused(path, dtype):
    theirs, _ = made()
    np.savez(path, **theirs | {NORM: np.zeros(16, dtype)})  # as it is: the writer takes uint16 for bfloat16
    complaint(path, f"{NORM} is ", "weights must be float32, bfloat16 or float16")


def test_pickled_arrays_are_refused_with_the_reason(path):
    theirs, _ = made()
    complaint(write_npz(path, theirs | {NORM: np.array([1] * 16, dtype=object)}), f"{NORM} is pickled", "can run programs")


def test_a_path_without_such_a_file_is_named(tmp_path):
    complaint(tmp_path, "no npz file is there")
    complaint(tmp_path / "nothing.npz", "no npz file is there")


@pytest.mark.parametrize("deflated", [False, True], ids=["stored", "deflated"])
def test_about_one_layer_is_in_memory_at_a_time(path, deflated):
    layers, bytes_each = 12, 2 * 16 * 40_000 * 4
    theirs, _ = made()
    text = {name: np.zeros((layers, *array.shape[1:]), np.float32) for name, array in theirs.items() if "llm/layers/" in name}
    text |= {"llm/layers/mlp/gating_einsum": np.zeros((layers, 2, 16, 40_000), np.float32),
             "llm/layers/mlp/linear": np.zeros((layers, 40_000, 16), np.float32)}  # fmt: skip
    write_npz(path, theirs | text, deflated=deflated)
    del text
    tracemalloc.start()
    count = sum(1 for _ in big_vision_arrays(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == len(expected_shapes(read_big_vision(path)[0]))
    assert peak < 2.5 * bytes_each  # a layer, its tensors the other way round, and small things; the array has 12 layers


@dataclass(frozen=True, repr=False)
class Whole:
    """A very small checkpoint, to be damaged."""

    files: list[bytes]  # stored and deflated
    ours: dict[str, np.ndarray]
    path: Path  # of the damaged copies


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    theirs, ours = made(num_hidden_layers=1)
    theirs[TABLE] = theirs[TABLE][:62]
    ours[EMBEDDING] = ours[EMBEDDING][:62]
    files = [write_npz(folder / "model.npz", theirs, deflated=deflated).read_bytes() for deflated in (False, True)]
    return Whole(files, ours, folder / "model.npz")


KINDS = ("set", "set", "set", "cut", "insert", "drop", "repeat", "zero")
NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1)
STEP = struct.Struct("<HBBQ")  # where, what, which number, and one that may be any


def damage(content: bytes, recipe: bytes) -> bytes:
    """Damage a file in the places, one to four, that a recipe names, half of them in the list of members at its end."""
    for place, kind, choice, number in STEP.iter_unpack(recipe[: len(recipe) // STEP.size * STEP.size]):
        at = place * len(content) >> 16 if place % 2 else max(len(content) - place // 8, 0)
        new = (NUMBERS[choice] if choice < len(NUMBERS) else number).to_bytes(8, "little")[: choice % 8 + 1]
        length = number % 500
        changes = {"set": new + content[at + len(new) :], "cut": b"", "insert": new + content[at:], "drop": content[at + length :],
                   "repeat": content[max(at - length, 0) :], "zero": bytes(length) + content[at + length :]}  # fmt: skip
        content = content[:at] + changes[KINDS[kind % len(KINDS)]]
    return content


def damaged_file_is_refused_or_read_rightly(whole, recipe, deflated):
    whole.path.write_bytes(damage(whole.files[deflated], recipe))
    try:
        found = dict(big_vision_arrays(whole.path))
    except CheckpointError as error:
        assert str(error).isprintable()
        assert str(whole.path) in str(error)
        return
    found[EMBEDDING] = found[EMBEDDING][:62]
    assert found.keys() == whole.ours.keys()
    assert all(np.array_equal(found[name], array) for name, array in whole.ours.items())


@settings(max_examples=600)
@given(recipe=st.binary(min_size=STEP.size, max_size=4 * STEP.size), deflated=st.booleans())
def test_a_damaged_file_is_refused_in_one_line_or_read_as_it_was(whole, recipe, deflated):
    damaged_file_is_refused_or_read_rightly(whole, recipe, deflated)


def test_rows_of_the_tests_own_table_are_what_the_reader_makes_of_it():
    assert -(-(IMAGE_TOKEN + 2) // 64) * 64 == ROWS
