"""What must not be written or replaced is refused in one line before any work."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.new_folder import new_folder

OLD_FILES = {"config.json": b"old", "deep/model.safetensors": b"old weights" * 1000}


def write(folder: Path) -> None:
    for name, content in OLD_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def target(tmp_path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "out"


@pytest.fixture
def old(target) -> Path:
    """The target, with a checkpoint in it."""
    write(target)
    return target


def refusal(target: Path, **options) -> str:
    """The one line of a refusal, which came before anything was written."""
    before = sorted(target.absolute().parent.rglob("*")) if target.absolute().parent.is_dir() else []
    with pytest.raises(CheckpointError) as caught, new_folder(target, options.pop("needed_bytes", 0), **options):
        pytest.fail("the work has begun")
    assert "\n" not in str(caught.value)
    assert (sorted(target.absolute().parent.rglob("*")) if before else []) == before
    return str(caught.value)


def test_a_target_with_files_is_refused_without_overwrite(old):
    assert refusal(old) == f"{old} is there and not empty; --overwrite replaces it, or choose another folder"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_refused(target, overwrite):
    target.write_bytes(b"mine")
    assert "is a file" in refusal(target, overwrite=overwrite)
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize("points_to", ["folder", "nothing", "itself"])
def test_a_link_is_refused_and_the_message_says_where_it_points(target, tmp_path, points_to):
    goal = {"folder": tmp_path, "nothing": tmp_path / "gone", "itself": target}[points_to]
    target.symlink_to(goal)
    message = refusal(target, overwrite=True)
    assert "is a link" in message
    assert str(goal) in message


def test_a_link_among_the_parents_is_followed(target, tmp_path):
    (tmp_path / "link").symlink_to(target.parent)
    with new_folder(tmp_path / "link" / "out", 0) as folder:
        write(folder)
    assert content(target) == OLD_FILES


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_source_is_refused_under_any_name(old, tmp_path, overwrite, monkeypatch):
    (tmp_path / "link").symlink_to(old)
    monkeypatch.chdir(old.parent)
    for source in (old, tmp_path / "link", Path("out")):
        assert "is the model that is read" in refusal(old, overwrite=overwrite, source=source)
    assert content(old) == OLD_FILES


def test_a_target_in_the_source_or_around_it_is_refused(old, tmp_path):
    assert "inside" in refusal(old / "mlx", source=old)
    assert f"holds {old}" in refusal(old.parent, source=old, overwrite=True)
    (tmp_path / "link").symlink_to(old)
    assert "inside" in refusal(old / "mlx", source=tmp_path / "link")


def test_a_source_that_is_reached_through_a_link_is_found_in_the_target(old, tmp_path):
    (old / "deep" / "model").mkdir()
    (tmp_path / "link").symlink_to(old / "deep")
    assert f"holds {tmp_path / 'link' / 'model'}" in refusal(old, source=tmp_path / "link" / "model", overwrite=True)


def test_dots_name_the_folder_that_they_stand_for(target, monkeypatch):
    target.mkdir()
    monkeypatch.chdir(target)
    with new_folder(Path(), 0) as folder:
        write(folder)
    assert content(target) == OLD_FILES
    monkeypatch.chdir(target / "deep")
    with pytest.raises(CheckpointError) as caught, new_folder(Path(".."), 0):
        pytest.fail("the work has begun")
    assert str(caught.value).startswith(f"{target} is there and not empty")


def test_a_source_beside_the_target_is_no_hindrance(old, tmp_path):
    with new_folder(tmp_path / "models" / "out2", 0, source=old) as folder:
        write(folder)
    with new_folder(tmp_path / "models" / "out2", 0, source=tmp_path / "gone", overwrite=True) as folder:
        write(folder)


def test_a_missing_parent_and_a_parent_that_is_a_file_are_refused(target):
    assert f"{target.parent / 'x'} does not exist" in refusal(target.parent / "x" / "out")
    (target.parent / "file").touch()
    assert f"{target.parent / 'file'} is not a folder" in refusal(target.parent / "file" / "out")


@pytest.mark.parametrize("name", ["a" * 240, "a" * 300, "a\0b"])
def test_an_impossible_name_is_refused(target, name):
    assert "cannot be written" in refusal(target.parent / name)
    assert list(target.parent.iterdir()) == []


def test_the_home_of_nobody_is_refused():
    with pytest.raises(CheckpointError, match="cannot be written"), new_folder(Path("~no-such-user-here/out"), 0):
        pytest.fail("the work has begun")


def test_a_mount_point_is_refused(old, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == old)  # mounting takes root
    assert "mount point" in refusal(old, overwrite=True)
    assert content(old) == OLD_FILES


@pytest.mark.parametrize("inside", ["", "deep"])
def test_overwrite_spares_the_home_folder_and_the_folder_one_is_in(old, inside, monkeypatch):
    monkeypatch.setenv("HOME", str(old / inside))
    assert "your home folder" in refusal(old, overwrite=True)
    monkeypatch.setenv("HOME", "/")
    monkeypatch.chdir(old / inside)
    assert "the folder that you are in" in refusal(old, overwrite=True)


def test_too_little_space_is_refused_with_need_and_have(target, monkeypatch):
    usage = shutil.disk_usage(target.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3_000_000_000))
    message = refusal(target, needed_bytes=6_210_000_000)
    assert f"{target} needs 6.21 GB, and 3.00 GB are free" in message
    with new_folder(target, 3_000_000_000) as folder:
        write(folder)
    assert "6.21 GB beside the old folder" in refusal(target, needed_bytes=6_210_000_000, overwrite=True)


AS_NOBODY = """
import os, sys
from pathlib import Path
from mlx_paligemma.common.new_folder import new_folder
os.setgid(65534), os.setuid(65534)
try:
    with new_folder(Path(sys.argv[1]), 0, overwrite=True):
        print("begun")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a child as another user")
@pytest.mark.parametrize(("closed", "mode"), [(".", 0o555), ("out", 0o555), (".", 0o000), ("out", 0o000)])
def test_where_one_may_not_write_is_refused(closed, mode):
    with tempfile.TemporaryDirectory() as parent:
        out = Path(parent, "out")
        write(out)
        Path(parent).chmod(0o777)
        out.chmod(0o777)
        Path(parent, closed).chmod(mode)
        answer = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(out)], check=False, capture_output=True, text=True, timeout=60
        )
        assert answer.stdout.startswith("CheckpointError"), answer
        assert "you may not write in" in answer.stdout
        assert [path.name for path in Path(parent).iterdir()] == ["out"]


def test_a_name_that_is_not_utf8_is_refused_in_ascii(tmp_path):
    message = refusal(tmp_path / "na\udcffme")
    assert "it is not UTF-8" in message and "na\\udcffme" in message and message.isascii()
