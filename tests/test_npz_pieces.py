"""The pieces of a cut npz file are found, complete and in order, and read as the whole would be."""

import io

import pytest

from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.npz_pieces import LONGEST_READ, JoinedFiles, find_npz


def fill(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"x")
    return [folder / name for name in names]


def complaint(path, *words):
    with pytest.raises(CheckpointError) as error:
        find_npz(path)
    assert str(error.value).isprintable()
    assert all(word in str(error.value) for word in words), error.value


def test_the_one_file_of_a_folder_is_found_by_either_name(tmp_path):
    (file,) = fill(tmp_path, "model.bf16.npz")
    fill(tmp_path, "config.json", "vae-oid.npz", "model.npz.md5", "model.npz.part", "model.npz.part1.tmp")
    assert find_npz(tmp_path) == find_npz(file) == (file,)


@pytest.mark.parametrize(
    "parts", [["00", "01", "02"], ["1", "2", "3"], ["0", "1"], ["000"], ["0", "01", "002"], [*"0123456789", "10", "11"]]
)
def test_pieces_come_in_the_order_of_their_numbers(tmp_path, parts):
    pieces = fill(tmp_path, *(f"m.npz.part{part}" for part in parts))
    assert find_npz(tmp_path) == find_npz(tmp_path / "m.npz") == find_npz(pieces[-1]) == tuple(pieces)


def test_a_whole_file_goes_before_its_pieces(tmp_path):
    whole, _ = fill(tmp_path, "m.npz", "m.npz.part01")
    assert find_npz(whole) == find_npz(tmp_path) == (whole,)


GAPS = {
    ("00", "02"): "piece 1 of it is missing",
    ("02",): "piece 1 of it is missing",
    ("1", "3", "4"): "piece 2 of it is missing",
    ("0", "1", "01", "2"): "piece 1 of it is there twice",
    ("1", "01"): "piece 1 of it is there twice",
    ("0", "00"): "piece 0 of it is there twice",
}


@pytest.mark.parametrize("parts", GAPS)
def test_pieces_with_a_gap_are_refused(tmp_path, parts):
    pieces = fill(tmp_path, *(f"m.npz.part{part}" for part in parts))
    for path in (tmp_path, tmp_path / "m.npz", pieces[0]):
        complaint(path, str(tmp_path / "m.npz"), GAPS[parts], "numbered from 0 or 1")


def test_several_files_in_a_folder_are_named(tmp_path):
    files = fill(tmp_path, "a.npz", "b.npz.part0", "b.npz.part1")
    complaint(tmp_path, str(tmp_path), "several npz files (a.npz, b.npz)", "give the path of the one that is wanted")
    assert find_npz(files[0]) == (files[0],)
    assert find_npz(files[1]) == tuple(files[1:])


def test_nothing_is_found_where_there_is_nothing(tmp_path):
    fill(tmp_path, "model.safetensors", "vae-oid.npz", ".npz.part", "x.npz.partaa")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "folder.npz" / "x").mkdir()
    for name in ("", "model.safetensors", "no.npz", "no/no.npz", "no", "no.npz.part00", "folder.npz/x", "model.safetensors/x.npz"):
        assert find_npz(tmp_path / name) == ()


def test_a_path_that_cannot_be_looked_up_is_named(tmp_path):
    complaint(tmp_path / ("x" * 300 + ".npz"), "cannot be looked up (File name too long)")


@pytest.fixture
def joined():
    return JoinedFiles([io.BytesIO(part) for part in (b"", b"abc", b"", b"d", b"efghij", b"")])


def test_joined_files_are_read_as_one(joined):
    content = b"abcdefghij"
    assert joined.size == 10
    assert joined.read() == content
    assert joined.read() == joined.read(5) == b""
    for start in range(12):
        for size in range(12):
            assert joined.seek(start) == start
            assert joined.read(size) == content[start : start + size]
            assert joined.tell() == min(start + size, max(start, 10))


def test_joined_files_can_be_entered_anywhere_but_before_their_begin(joined):
    assert joined.seekable()
    assert joined.seek(-3, io.SEEK_END) == 7
    assert joined.seek(-2, io.SEEK_CUR) == 5
    assert joined.seek(2**70) == 2**70
    assert joined.read(4) == b""
    with pytest.raises(ValueError, match="before its begin"):
        joined.seek(-1)


def test_no_more_is_read_at_once_than_any_real_archive_asks_for(tmp_path):
    path = tmp_path / "hole"
    with path.open("wb") as file:
        file.truncate(LONGEST_READ + 1)
    with path.open("rb") as file:
        joined = JoinedFiles([file])
        for size in (LONGEST_READ + 1, -1, None, 2**60):
            with pytest.raises(ValueError, match="claims 67108865 bytes"):
                joined.read(size)
        assert len(joined.read(1000)) == 1000


def test_a_file_that_shrinks_while_it_is_read_gives_what_is_left(tmp_path):
    (path,) = fill(tmp_path, "x")
    with path.open("rb") as file:
        joined = JoinedFiles([file, io.BytesIO(b"y")])
        path.write_bytes(b"")
        assert joined.read() == b""
