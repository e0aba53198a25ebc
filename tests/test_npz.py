"""An npz file is read array by array and layer by layer; what its headers claim is held against the file before it is believed."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from numpy.lib import format as npy

from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.npz import NpzFile, shown

SMALL = 2**22  # bytes of memory, some of which only the first archive of a run takes
NUMBERS = np.arange(24, dtype=np.float32).reshape(4, 3, 2)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.npz"


def npy_bytes(array=NUMBERS, version=(1, 0)) -> bytes:
    file = io.BytesIO()
    npy.write_array(file, array, version)
    return file.getvalue()


def npy_with(header: str, data: bytes = NUMBERS.tobytes(), version: bytes = b"\x01\x00") -> bytes:
    size = "<H" if version == b"\x01\x00" else "<I"
    return npy.MAGIC_PREFIX + version + struct.pack(size, len(header) + 1) + header.encode("latin-1") + b"\n" + data


def described(shape, descr="'<f4'", order=False) -> str:
    return str({"descr": "?", "fortran_order": order, "shape": shape}).replace("'?'", descr)


def write(path, *members: bytes, names=("a", "b", "c"), **settings):
    with zipfile.ZipFile(path, "w", **settings) as archive:
        for name, content in zip(names, members, strict=False):
            archive.writestr(f"{name}.npy", content)
    return path


def read(path, name="a"):
    with NpzFile([path]) as file:
        header = file.header(name)
        array = header.empty(header.shape)
        file.read_into(array, name)
        return array


def complaint(path, *words, name="a") -> str:
    """The one line with which an array is refused; it must hold all `words`."""
    with pytest.raises(CheckpointError) as error:
        read(path, name)
    message = str(error.value)
    assert message.isprintable()
    assert all(word in message for word in (str(path), *words)), message
    return message


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_whole_and_in_layers(path, save):
    save(path, **{"params/a": NUMBERS, "b": NUMBERS.astype(np.float16), "c": NUMBERS.astype(np.uint16).view("V2")})
    with NpzFile([path]) as file:
        assert file.names == ("params/a", "b", "c")
        headers = {name: file.header(name) for name in file.names}
        assert [header.dtype for header in headers.values()] == ["float32", "float16", "bfloat16"]
        assert {header.shape for header in headers.values()} == {(4, 3, 2)}
        for name, kind in (("params/a", "float32"), ("b", "float16"), ("c", "uint16")):
            layers = list(file.layers(name))
            assert [layer.shape for layer in layers] == [(3, 2)] * 4
            assert layers[0].dtype == kind
            assert np.array_equal(np.stack(layers), NUMBERS)
            whole = headers[name].empty((5, 3, 2))
            file.read_into(whole[:4], name)
            assert np.array_equal(whole[:4], NUMBERS)


def test_a_long_array_is_read_in_several_steps(path):
    numbers = np.random.default_rng(0).normal(size=(3, 700_001)).astype(np.float32)
    np.savez(path, a=numbers)
    assert np.array_equal(read(path), numbers)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_both_versions_of_the_npy_format_are_read(path, version):
    assert np.array_equal(read(write(path, npy_bytes(version=version))), NUMBERS)


@pytest.mark.parametrize("version", [(3, 0), (4, 0), (0, 9)])
def test_other_versions_are_refused(path, version):
    content = npy_with(described((4, 3, 2)), version=bytes(version))
    complaint(write(path, content), f"a cannot be read (version {version[0]}.{version[1]} of the npy format is unknown)")


def test_a_file_may_have_something_before_and_after_it(path):
    content = write(path, npy_bytes()).read_bytes()
    path.write_bytes(b"#!/bin/sh\n" + content)
    assert np.array_equal(read(path), NUMBERS)


def test_folders_inside_the_archive_are_no_arrays(path):
    with zipfile.ZipFile(write(path, npy_bytes()), "a") as archive:
        archive.mkdir("params")
    with NpzFile([path]) as file:
        assert file.names == ("a",)


def test_a_file_is_closed_after_use(path):
    with NpzFile([write(path, npy_bytes())]) as file:
        pass
    with pytest.raises(CheckpointError, match="a cannot be read"):
        file.header("a")


NO_ARCHIVES = [b"", b"PK", b"version https://git-lfs.github.com/spec/v1\n", bytes(1000), b"PK\x05\x06" + bytes(9)]


@pytest.mark.parametrize("content", NO_ARCHIVES, ids=["empty", "two bytes", "pointer", "zeros", "half an end"])
def test_what_is_no_archive_is_named(path, content):
    path.write_bytes(content)
    complaint(path, f"{path} is not a whole npz file (", "); copy it again")


def test_a_file_that_cannot_be_opened_is_named(path):
    complaint(path, "is not a whole npz file (No such file or directory)")
    path.symlink_to(path.name)
    complaint(path, "is not a whole npz file (Too many levels of symbolic links)")


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named(path, keep):
    content = write(path, npy_bytes(), npy_bytes()).read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    complaint(path, "is not a whole npz file")


def test_a_name_that_is_there_twice_is_refused(path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        write(path, npy_bytes(), npy_bytes(), names=("a", "a"))
    complaint(path, "a is there twice")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", npy_bytes())
        archive.writestr("a.npy", npy_bytes())
    complaint(path, "a is there twice")


HEADERS = {
    "no header": (b"", "EOF"),
    "no npy": (b"GIF89a" * 100, "magic string"),
    "no dictionary": (npy_with("[1]"), "a cannot be read"),
    "no Python": (npy_with("{'descr': "), "a cannot be read"),
    "a call": (npy_with("{'descr': print(1)}"), "a cannot be read"),
    "a missing key": (npy_with("{'descr': '<f4', 'shape': (4, 3, 2)}"), "a cannot be read"),
    "a nesting without end": (npy_with("(" * 9000), "a cannot be read"),
    "numbers of Python 2": (npy_with(described((4, 3, 2)).replace("(4", "(4L")), "a cannot be read"),
    "a shape of text": (npy_with(described("abc")), "shape is not valid"),
    "a negative shape": (npy_with(described((-4, -6))), "not those of float32 (-4, -6)"),
    "no such type": (npy_with(described((24,), "'<q9'")), "a cannot be read"),
    "a longer shape": (npy_with(described((5, 3, 2))), "has 96 bytes, not those of float32 (5, 3, 2)"),
    "a shorter shape": (npy_with(described((3, 3, 2))), "has 96 bytes, not those of float32 (3, 3, 2)"),
    "2^60 numbers": (npy_with(described((2**30, 2**30))), f"not those of float32 ({2**30}, {2**30})"),
    "a header of 4 GB": (npy.MAGIC_PREFIX + b"\x02\x00\xff\xff\xff\xff" + bytes(10**6), "a cannot be read"),
    "a type with fields": (npy_with(described((48,), "[('x', '|u1'), ('y', '|u1')]")), "weights must be float32"),
    "a type with a shape": (npy_with(described((12,), "('<f4', (2,))")), "weights must be float32"),
    "big-endian numbers": (npy_with(described((24,), "'>f4'")), "a is >f4; weights must be float32"),
    "double precision": (npy_with(described((12,), "'<f8'")), "a is float64; weights must be float32, bfloat16 or float16"),
    "whole numbers": (npy_with(described((24,), "'<i4'")), "a is int32; weights must be float32, bfloat16 or float16"),
    "objects": (npy_with(described((1,), "'|O'")), "a is pickled, which can run programs; save it as an array of numbers"),
    "Fortran order": (npy_bytes(np.asfortranarray(NUMBERS)), "a is stored in Fortran order; save it with numpy.ascontiguousarray"),
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_bad_header_is_refused(path, kind, compression):
    content, words = HEADERS[kind]
    complaint(write(path, content, compression=compression), words)


def test_the_order_of_a_vector_does_not_matter(path):
    assert np.array_equal(read(write(path, npy_with(described((24,), order=True)))), NUMBERS.ravel())


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(path, method):
    complaint(write(path, npy_bytes(), compression=method), f"a cannot be read (compression method {method} is unknown)")


def test_a_name_that_no_terminal_should_see_is_escaped(path):
    name = "a\n\x1b[2J"
    complaint(write(path, b"", names=(name,)), r"'a\n\x1b[2J' cannot be read", name=name)
    assert shown("params/a é") == "params/a é"


def directory_entry(content: bytes) -> int:
    """Where the entry of the first member begins in the list of members."""
    return content.index(b"PK\x01\x02")


@pytest.mark.parametrize("claimed", [2**60, 2**40, 2**33, 10**6])
@pytest.mark.parametrize("which", ["both", "stored", "real"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_member_cannot_claim_more_than_the_file_holds(path, claimed, which, compression):
    """Sizes of 64 bits stand in an extra field, which the list of members has where a size of 32 bits is all ones."""
    shape = (claimed // 4,)
    content = bytearray(write(path, npy_with(described(shape)), compression=compression).read_bytes())
    at, end = directory_entry(content), content.rindex(b"PK\x05\x06")
    stored, real = struct.unpack_from("<II", content, at + 20)
    extra = struct.pack("<HHQQ", 1, 16, real if which == "stored" else claimed, stored if which == "real" else claimed)
    struct.pack_into("<II", content, at + 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<H", content, at + 30, len(extra))
    content[end:end] = extra
    struct.pack_into("<I", content, len(content) - 10, struct.unpack_from("<I", content, len(content) - 10)[0] + len(extra))
    path.write_bytes(content)
    tracemalloc.start()
    complaint(path, "a cannot be read (the file cannot hold its ", str(claimed))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < SMALL


def test_the_list_of_members_cannot_be_longer_than_any_real_one(path):
    content = bytearray(write(path, npy_bytes()).read_bytes())
    size, start = struct.unpack_from("<II", content, len(content) - 10)
    filler = 2**27
    struct.pack_into("<II", content, len(content) - 10, size + filler, start)
    with path.open("wb") as file:
        file.seek(filler)  # a hole, which takes no room
        file.write(content)
    tracemalloc.start()
    complaint(path, "is not a whole npz file (its list of members claims ")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < SMALL


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_changed_number_is_noticed(path, compression):
    numbers = np.random.default_rng(0).normal(size=(40, 1000)).astype(np.float32)
    content = bytearray(write(path, npy_bytes(numbers), compression=compression).read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    complaint(path, "a cannot be read (", "); copy it again")
    with NpzFile([path]) as file, pytest.raises(CheckpointError, match="a cannot be read"):
        list(file.layers("a"))


def test_a_member_that_ends_too_early_is_noticed(path):
    content = npy_with(described((10**5,)), bytes(4 * 10**5 - 4))
    archive = bytearray(write(path, content, compression=zipfile.ZIP_DEFLATED).read_bytes())
    struct.pack_into("<I", archive, directory_entry(archive) + 24, len(content) + 4)
    path.write_bytes(archive)
    complaint(path, "a cannot be read (it ends too early); copy it again")


def test_a_member_that_goes_on_after_its_end_is_noticed(path):
    content = npy_with(described((10**5,)), bytes(4 * 10**5 + 4))
    archive = bytearray(write(path, content, compression=zipfile.ZIP_DEFLATED).read_bytes())
    struct.pack_into("<I", archive, directory_entry(archive) + 24, len(content) - 4)
    path.write_bytes(archive)
    complaint(path, "a cannot be read (", "); copy it again")
