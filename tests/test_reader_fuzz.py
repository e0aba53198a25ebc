"""Damaged safetensors files, indices and configs: one line of complaint, or the tensors that safetensors itself reads.

Damaged means bytes cut, changed and put in, or values of the JSON in them replaced, left out, added: 1,000 cases, with --full
100,000. None may take long or much memory.
"""

import json
import resource
import struct
import sys

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import config_json, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed_checkpoints import affine, pack, write_packed
from safetensors.numpy import load

from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.config_file import config_json as complete
from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.safetensors_files import INDEX_NAME
from mlx_paligemma.common.tensors import PATCHES
from mlx_paligemma.model.paligemma import PaliGemma
from mlx_paligemma.tensor_reader import evaluated, read_in_order

SECONDS = 5  # for a case; most take some milliseconds
GROWTH = 1 << 28  # bytes that a case may add to the largest memory so far
LONGEST_MESSAGE = 1000  # characters
SMALL = config_json(
    "gemma2",
    text={"num_hidden_layers": 1, "vocab_size": 16, "hidden_size": 64},
    vision={"num_hidden_layers": 1},
    projection_dim=64,
    image_token_index=7,
)
PACKED = ("language_model.embed_tokens", "language_model.layers.0.self_attn.q_proj")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def cases(count: int):
    full = settings.default.max_examples > 200  # the profile that --full chooses
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=100 * count if full else count, deadline=1000 * SECONDS, suppress_health_check=checks)


def peak_memory() -> int:
    """Bytes, of the process since its start."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A good folder: two shards with packed weights among the others, a config that leaves nothing out."""
    made = {name: mx.array(tensor.numpy()) for name, tensor in tensors(SMALL).items()}
    packed = pack(made, lambda module: affine(4) if module in PACKED else None, mx.float32)
    data = complete(PaliGemmaConfig.from_dict(SMALL), "float32")
    return write_packed(tmp_path_factory.mktemp("checkpoint"), packed, data, None, shards=2)


@pytest.fixture(scope="module")
def originals(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_refused_or_read(folder, originals, **changed: bytes) -> bool:
    """Whether it is read; then every tensor is what safetensors itself reads, and the network can be built."""
    memory = peak_memory()
    try:
        for name, content in changed.items():
            (folder / name).write_bytes(content)
        checkpoint = read_checkpoint(folder)
        found = {name: array for part in read_in_order(checkpoint) for name, array in evaluated(checkpoint, part).items()}
        stored = {path: load(path.read_bytes()) for path in checkpoint.files()}
        for name, info in checkpoint.tensors.items():
            array = stored[info.file][info.key]
            array = array.transpose(0, 2, 3, 1) if name == PATCHES and not checkpoint.channels_last else array
            assert np.array_equal(np.array(found[name]).view(np.uint8), np.ascontiguousarray(array).view(np.uint8)), name
        PaliGemma(checkpoint.config)
        mx.eval(mx.random.state)  # from which it promises its first weights: MLX would keep all those promises
    except CheckpointError as error:
        message = str(error)
        assert str(folder) in message and message.isprintable() and len(message) < LONGEST_MESSAGE, message
        return False
    finally:
        for name in changed:
            (folder / name).write_bytes(originals[name])
        assert peak_memory() - memory < GROWTH
    return True


def test_what_is_not_damaged_is_read(folder, originals):
    assert assert_refused_or_read(folder, originals)
    assert read_checkpoint(folder).packings


# Bytes

edits = st.lists(
    st.tuples(st.sampled_from(["cut", "put in", "put over", "leave out", "repeat"]), st.floats(0, 1), st.booleans(),
              st.integers(0, 64), st.binary(max_size=16) | st.sampled_from([b"\0" * 8, b"\xff" * 8, b"[", b"}", b'"', b"\\u"])),
    min_size=1, max_size=4,
)  # fmt: skip


def edited(content: bytes, changes) -> bytes:
    for kind, share, at_begin, count, piece in changes:
        at = int(share * min(len(content), 2500 if at_begin else len(content)))  # where the header is, or anywhere
        head, tail = content[:at], content[at:]
        content = {
            "cut": head, "put in": head + piece + tail, "put over": head + piece + tail[len(piece) :],
            "leave out": head + tail[count:], "repeat": head + tail[:count] + tail,
        }[kind]  # fmt: skip
    return content


@cases(250)
@given(st.sampled_from(SHARDS), edits)
def test_shards_with_damaged_bytes(folder, originals, shard, changes):
    assert_refused_or_read(folder, originals, **{shard: edited(originals[shard], changes)})


@cases(150)
@given(st.sampled_from([INDEX_NAME, "config.json"]), edits)
def test_json_with_damaged_bytes(folder, originals, name, changes):
    assert_refused_or_read(folder, originals, **{name: edited(originals[name], changes)})


# Values

WORDS = ("", "F32", "BF16", "F64", "I64", "U8", "U32", "gemma", "gemma2", "\0", "../x", "model.", "x.position_ids", *SHARDS)
NUMBERS = (0, -1, 1, 2, 8, 16, 64, 2**20, 1e308, 5e-324, 0.5)
HUGE = (10**9, 2**32, 2**63, 2**64 - 1, 2**64, 10**400, 10**4000)


def replacements(numbers):
    """What becomes of up to three values: how, at which depth and place, and what takes their place."""
    leaves = st.none() | st.booleans() | st.floats() | st.sampled_from((*WORDS, *numbers)) | st.text(max_size=20)
    trees = leaves | st.lists(leaves, max_size=4) | st.dictionaries(st.sampled_from(WORDS), leaves, max_size=3)
    how = st.sampled_from(["value", "leave out", "add", "name", "swap"])
    return st.lists(st.tuples(how, st.integers(0, 2), st.integers(0, 10**6), trees), min_size=1, max_size=3)


def replaced(tree: dict, changes) -> dict:
    """`tree` with some of its values changed."""
    for kind, depth, place, value in changes:
        holder = tree
        for step in range(depth):
            inner = [each for each in holder.values() if isinstance(each, dict) and each]
            holder = inner[(place >> 4 * step) % len(inner)] if inner else holder
        keys = list(holder) or [""]
        key, other = keys[place % len(keys)], keys[place // 7 % len(keys)]
        old = holder.pop(key, None) if kind in ("leave out", "name") else holder.get(key)
        holder |= {"value": {key: value}, "leave out": {}, "add": {str(value): value}, "name": {str(value): old},
                   "swap": {key: holder.get(other), other: old}}[kind]  # fmt: skip
    return tree


def header_of(content: bytes) -> tuple[dict, bytes]:
    """What a safetensors file begins with, and its data."""
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


@cases(300)
@given(st.sampled_from(SHARDS), replacements(NUMBERS + HUGE))
def test_headers_with_other_values(folder, originals, shard, changes):
    header, data = header_of(originals[shard])
    text = json.dumps(replaced(header, changes)).encode()
    assert_refused_or_read(folder, originals, **{shard: struct.pack("<Q", len(text)) + text + data})


@cases(200)
@given(replacements(NUMBERS + HUGE))
def test_configs_with_other_values(folder, originals, changes):
    text = json.dumps(replaced(json.loads(originals["config.json"]), changes))
    assert_refused_or_read(folder, originals, **{"config.json": text.encode()})


@cases(100)
@given(replacements(NUMBERS + HUGE))
def test_indices_with_other_values(folder, originals, changes):
    text = json.dumps(replaced(json.loads(originals[INDEX_NAME]), changes))
    assert_refused_or_read(folder, originals, **{INDEX_NAME: text.encode()})
