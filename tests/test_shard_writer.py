"""Tensors are written in the order in which they come, in files of a bounded size, with the index that every reader expects."""

import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from mlx_paligemma.common.safetensors_files import INDEX_NAME, weight_files
from mlx_paligemma.shard_writer import ShardWriter


def tensor(size: int, value: float = 0) -> mx.array:
    """Of so many bytes."""
    return mx.full((size // 4,), value, dtype=mx.float32)


def written(folder, max_bytes: int, *groups, kind: str = "mlx") -> ShardWriter:
    writer = ShardWriter(folder, max_bytes, kind)
    for group in groups:
        writer.add(group)
    writer.finish()
    return writer


def held(folder) -> dict[str, list[str]]:
    return {path.name: sorted(load_file(path)) for path in sorted(folder.glob("*.safetensors"))}


def test_what_fits_is_one_file_without_an_index(tmp_path):
    writer = written(tmp_path, 100, {"a": tensor(60)}, {"b": tensor(40)})
    assert held(tmp_path) == {"model.safetensors": ["a", "b"]}
    assert not (tmp_path / INDEX_NAME).exists() and writer.total_bytes == 100


def test_one_byte_more_makes_a_second_file_and_an_index(tmp_path):
    written(tmp_path, 99, {"a": tensor(60)}, {"b": tensor(40)})
    files = {"model-00001-of-00002.safetensors": ["a"], "model-00002-of-00002.safetensors": ["b"]}
    assert held(tmp_path) == files
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert index == {"metadata": {"total_size": 100}, "weight_map": {key: name for name, keys in files.items() for key in keys}}
    assert {path.name for path in weight_files(tmp_path)} == set(files)


def test_a_tensor_larger_than_a_file_gets_one_of_its_own(tmp_path):
    written(tmp_path, 50, {"a": tensor(20)}, {"big": tensor(200)}, {"b": tensor(20)}, {"c": tensor(20)})
    assert list(held(tmp_path).values()) == [["a"], ["big"], ["b", "c"]]


def test_what_belongs_together_comes_into_one_file(tmp_path):
    written(tmp_path, 100, {"a": tensor(60)}, {"b.weight": tensor(30), "b.scales": tensor(20)}, {"c": tensor(40)})
    assert list(held(tmp_path).values()) == [["a"], ["b.scales", "b.weight", "c"]]


@pytest.mark.parametrize("max_bytes", [4, 64, 200, 10**9])
def test_every_number_is_there_whatever_the_size_of_a_file(tmp_path, max_bytes):
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.normal(size=(3, int(rng.integers(1, 9)))).astype(np.float32) for i in range(20)}
    written(tmp_path, max_bytes, *({name: mx.array(array)} for name, array in arrays.items()))
    found = {name: array for path in tmp_path.glob("*.safetensors") for name, array in load_file(path).items()}
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    for path in tmp_path.glob("*.safetensors"):
        sizes = [array.nbytes for array in load_file(path).values()]
        assert sum(sizes) <= max_bytes or len(sizes) == 1


@pytest.mark.parametrize("kind", ["mlx", "pt"])
def test_the_metadata_says_for_whom_the_file_is(tmp_path, kind):
    written(tmp_path, 50, {"a": tensor(40)}, {"b": tensor(40)}, kind=kind)
    for path in weight_files(tmp_path):
        with safe_open(path, "numpy") as file:
            assert file.metadata() == {"format": kind}


def test_arrays_that_do_not_lie_in_order_are_written_right(tmp_path):
    array = mx.arange(24).reshape(2, 3, 4)
    written(tmp_path, 100, {"turned": array.transpose(2, 0, 1), "cut": array[:, 1:, ::2]})
    found = load_file(tmp_path / "model.safetensors")
    assert np.array_equal(found["turned"], np.array(array).transpose(2, 0, 1))
    assert np.array_equal(found["cut"], np.array(array)[:, 1:, ::2])


def test_memory_holds_one_file_at_a_time(tmp_path):
    size, count = 1 << 20, 16
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    writer = ShardWriter(tmp_path, 2 * size, "mlx")
    for i in range(count):
        writer.add({str(i): mx.random.normal((size // 4,))})
    writer.finish()
    assert len(weight_files(tmp_path)) == count // 2
    assert mx.get_peak_memory() - before < 4 * size
