"""A folder is written as a whole or not at all: errors, signals, kill -9, a full disk, a crash between any two steps."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlx_paligemma.common import new_folder as module
from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.new_folder import new_folder

OLD_FILES = {"config.json": b"old", "deep/model.safetensors": b"old weights" * 1000}
NEW_FILES = {"config.json": b"new", "a.bin": b"new weights" * 1000, "deep/deeper/b.bin": b"b"}


def write(folder: Path, files: dict[str, bytes] = NEW_FILES) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def left_over(target: Path) -> list[str]:
    return [path.name for path in target.parent.iterdir() if path.name.startswith(".")]


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "models" / "out"


@pytest.fixture
def old(target) -> Path:
    """The target, with a checkpoint in it."""
    write(target, OLD_FILES)
    return target


@pytest.fixture(autouse=True)
def _parent(tmp_path):
    (tmp_path / "models").mkdir(exist_ok=True)


def test_a_clean_end_makes_the_folder_the_target(target):
    with new_folder(target, 100) as folder:
        assert list(folder.iterdir()) == []
        assert folder.stat().st_dev == target.parent.stat().st_dev
        assert not target.exists()
        write(folder)
    assert content(target) == NEW_FILES
    assert left_over(target) == []


def test_the_target_has_the_permissions_of_any_new_folder_or_of_the_one_replaced(target):
    (target.parent / "ordinary").mkdir()
    with new_folder(target, 0) as folder:
        write(folder)
    assert target.stat().st_mode == (target.parent / "ordinary").stat().st_mode
    target.chmod(0o700)
    with new_folder(target, 0, overwrite=True) as folder:
        write(folder)
    assert target.stat().st_mode & 0o777 == 0o700


def test_an_empty_target_is_filled_without_overwrite(target):
    target.mkdir()
    with new_folder(target, 0) as folder:
        write(folder)
    assert content(target) == NEW_FILES
    assert left_over(target) == []


def test_overwrite_replaces_all_of_an_old_target(old):
    with new_folder(old, 0, overwrite=True) as folder:
        write(folder)
        assert content(old) == OLD_FILES
    assert content(old) == NEW_FILES
    assert left_over(old) == []


def test_every_file_and_folder_is_flushed_before_the_rename(old, monkeypatch):
    events: list[tuple[str, int]] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(("flush", os.fstat(fd).st_ino)), fsync(fd)))
    monkeypatch.setattr(Path, "rename", lambda a, b: (events.append(("rename", a.stat().st_ino)), rename(a, b))[1])
    with new_folder(old, 0, overwrite=True) as folder:
        write(folder)
    inodes = [path.stat().st_ino for path in [old, *old.rglob("*")]]
    renames = [i for i, (kind, _) in enumerate(events) if kind == "rename"]
    assert {inode for kind, inode in events[: renames[0]] if kind == "flush"} == set(inodes)
    assert events[-1] == ("flush", old.parent.stat().st_ino)
    assert len(renames) == 2


# What goes wrong in the middle


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), OSError(5, "I/O"), CheckpointError("x"), GeneratorExit()]
)
@pytest.mark.parametrize("there", [False, True])
def test_any_exception_passes_and_leaves_everything_as_it_was(target, error, there):
    if there:
        write(target, OLD_FILES)
    with pytest.raises(type(error)) as caught, new_folder(target, 0, overwrite=True) as folder:
        write(folder)
        raise error
    assert caught.value is error
    assert (content(target) if there else target.exists()) == (OLD_FILES if there else False)
    assert left_over(target) == []


def next_run(target: Path) -> None:
    """One that puts right what another has left, and is then refused because of what is there."""
    with pytest.raises(CheckpointError, match="not empty"), new_folder(target, 0):
        pytest.fail("the work has begun")


@contextmanager
def failing(monkeypatch, owner, name, at, error):
    """The `at`-th call of a function raises."""
    calls, real = [], getattr(owner, name)

    def call(*arguments, **options):
        calls.append(arguments)
        if len(calls) == at:
            raise error
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, call)
        yield calls


@pytest.mark.parametrize("step", ["flush 1", "flush 4", "first rename", "second rename"])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_an_error_at_each_step_of_putting_it_in_place_leaves_the_old_target_whole(old, monkeypatch, step, error):
    owner, name, at = {"flush 1": (os, "fsync", 1), "flush 4": (os, "fsync", 4),
                       "first rename": (Path, "rename", 1), "second rename": (Path, "rename", 2)}[step]  # fmt: skip
    with (
        failing(monkeypatch, owner, name, at, error) as calls,
        pytest.raises((OSError, KeyboardInterrupt, CheckpointError)),
        new_folder(old, 0, overwrite=True) as folder,
    ):
        write(folder)
    assert len(calls) >= at
    assert content(old) == OLD_FILES
    assert left_over(old) == []


def test_an_old_target_that_cannot_go_back_is_kept_and_named_and_is_back_after_the_next_run(old, monkeypatch):
    rename = Path.rename

    def only_first(self, to):
        if self == old:
            return rename(self, to)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", only_first)
        with pytest.raises(CheckpointError, match="cannot go back") as caught, new_folder(old, 0, overwrite=True) as folder:
            write(folder)
    (work,) = old.parent.glob(".out.partial-*")
    assert str(work / "old") in str(caught.value)
    assert content(work / "old") == OLD_FILES
    next_run(old)
    assert content(old) == OLD_FILES
    assert left_over(old) == []


def test_an_error_keeps_its_words_where_the_work_folder_cannot_be_removed_either(target, monkeypatch):
    with (
        failing(monkeypatch, shutil, "rmtree", 1, PermissionError(13, "Permission denied")),
        pytest.raises(ValueError, match="first"),
        new_folder(target, 0),
    ):
        raise ValueError("first")
    assert len(left_over(target)) == 1


def test_sigterm_ends_the_work_at_once(old):
    steps = []
    with pytest.raises(SystemExit) as caught, new_folder(old, 0, overwrite=True) as folder:
        write(folder)
        os.kill(os.getpid(), signal.SIGTERM)
        steps.append("after")
    assert caught.value.code == 143
    assert steps == []
    assert content(old) == OLD_FILES
    assert left_over(old) == []


def test_a_target_that_somebody_else_made_meanwhile_is_not_lost(target):
    with pytest.raises(CheckpointError, match="could not be put in its place"), new_folder(target, 0) as folder:
        write(folder)
        target.touch()
    assert target.read_bytes() == b""
    assert left_over(target) == []


def test_an_old_target_that_cannot_be_removed_is_named(old, monkeypatch):
    with (
        failing(monkeypatch, shutil, "rmtree", 1, PermissionError(13, "Permission denied")),
        pytest.raises(CheckpointError, match=r"is written; .*partial-.* cannot be removed"),
        new_folder(old, 0, overwrite=True) as folder,
    ):
        write(folder)
    assert content(old) == NEW_FILES


CHILD = """
import os, sys, time
from pathlib import Path
from mlx_paligemma.common import new_folder as module
target, crash = Path(sys.argv[1]), sys.argv[2]
rename, count = Path.rename, []
def renamed(self, to):
    count.append(self)
    result = rename(self, to) if crash[0] == "a" or len(count) != int(crash[1]) else None
    if crash[0] in "ab" and len(count) == int(crash[1]):
        os.kill(os.getpid(), 9)
    return result
if crash != "-":
    Path.rename = renamed
print("ready", flush=True)
while True:
    with module.new_folder(target, 0, overwrite=True) as folder:
        (folder / "deep").mkdir()
        for i in range(20):
            (folder / "deep" / f"{i}.bin").write_bytes(b"new" * 10000)
        (folder / "config.json").write_bytes(b"new")
"""
CHILD_FILES = {f"deep/{i}.bin": b"new" * 10000 for i in range(20)} | {"config.json": b"new"}


def child(target: Path, crash: str = "-") -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(target), crash], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_a_random_moment_leaves_one_whole_target_and_nothing_else(old, number):
    rng = random.Random(int(number))
    for _ in range(12):
        with child(old) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))
            process.send_signal(number)
            assert process.wait(timeout=30) in (128 + number, -number)
        assert content(old) in (OLD_FILES, CHILD_FILES)
        assert left_over(old) == []


def test_kill_9_at_a_random_moment_leaves_a_whole_target_and_the_next_run_tidies_up(old):
    rng = random.Random(9)
    left = 0
    for _ in range(25):
        with child(old) as process:
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
        left += len(left_over(old))
        next_run(old)
        assert content(old) in (OLD_FILES, CHILD_FILES)
        assert left_over(old) == []
    assert left > 0, "no child was killed in the middle: nothing was tested"


@pytest.mark.parametrize(("crash", "state"), [("b1", OLD_FILES), ("a1", None), ("b2", None), ("a2", CHILD_FILES)])
def test_kill_9_around_each_rename_is_put_right_by_the_next_run(old, crash, state):
    """b1: before the first rename, a1: after it, b2: before the second, a2: after it."""
    with child(old, crash) as process:
        assert process.wait(timeout=30) == -signal.SIGKILL
    assert (content(old) if old.exists() else None) == state
    (work,) = old.parent.glob(".out.partial-*")
    assert str(process.pid) in work.name
    next_run(old)
    assert content(old) == (OLD_FILES if state is None else state)
    assert left_over(old) == []


EVERY_LINE = """
import json, os, shutil, sys
from pathlib import Path
from mlx_paligemma.common import ending_signals, new_folder as module, target_folder
FILES = {file.__file__ for file in (module, ending_signals, target_folder)}
target, number = Path(sys.argv[1]), int(sys.argv[2])
old = {"config.json": "old", "b": "old"}
new = {"config.json": "new", "c": "new"}

def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)

def run(last):
    lines = []
    def trace(frame, event, argument):
        if frame.f_code.co_filename in FILES and event == "line":
            lines.append(frame.f_lineno)
            if len(lines) == last:
                os.kill(os.getpid(), number)
        return trace if frame.f_code.co_filename in FILES else None
    sys.settrace(trace)
    with module.new_folder(target, 0, overwrite=True) as folder:
        write(folder, new)
    sys.settrace(None)

line, states = 0, []
while True:
    line += 1
    shutil.rmtree(target.parent)
    target.parent.mkdir()
    write(target, old)
    child = os.fork()
    if not child:
        try:
            run(line)
        except KeyboardInterrupt:
            os._exit(130)
        except SystemExit as end:
            os._exit(end.code)
        os._exit(99)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 99:
        break
    before = sorted(path.name for path in target.parent.iterdir())
    try:
        with module.new_folder(target, 0):
            pass
    except module.CheckpointError as error:
        assert "not empty" in str(error), (line, str(error))
    after = [path.name for path in target.parent.iterdir()]
    found = {path.name: path.read_text() for path in target.iterdir()}
    states.append([line, status, before, after, "old" if found == old else "new" if found == new else found])
print(json.dumps(states))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_at_every_single_line_leaves_a_whole_target(target, number):
    command = [sys.executable, "-c", EVERY_LINE, str(target), str(int(number))]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    states = json.loads(answer.stdout)
    assert len(states) > 100
    assert {state for *_, state in states} == {"old", "new"}
    for line, status, before, after, _ in states:
        assert after == ["out"], line
        if number != signal.SIGKILL:
            assert before == ["out"], line
            assert status in (128 + number, -number), line


def test_a_left_over_old_target_is_not_put_over_a_newer_one_and_not_removed(old):
    with child(old, "a1") as process:
        process.wait(timeout=30)
    write(old)
    with pytest.raises(CheckpointError, match=r"lies in .*partial-.*old and cannot go back"), new_folder(old, 0, overwrite=True):
        pytest.fail("the work has begun")
    (work,) = old.parent.glob(".out.partial-*")
    assert content(work / "old") == OLD_FILES
    assert content(old) == NEW_FILES


def test_the_work_of_a_live_run_and_of_other_targets_is_left_alone(target):
    others = [".out2.partial-1-abcdefgh", ".out.partial-x", ".out.partial-1-abcdefgh.txt"]
    for name in others:
        (target.parent / name).mkdir()
    with new_folder(target, 0) as first:
        with new_folder(target, 0) as second:
            assert first != second
            assert first.exists()
            write(second, {"from": b"second"})
        write(first, {"from": b"first"})
        shutil.rmtree(target)
    assert content(target) == {"from": b"first"}
    assert sorted(left_over(target)) == sorted(others)


def test_a_left_over_of_the_same_process_number_is_removed(target):
    work = target.parent / f".out.partial-{os.getpid()}-abcdefgh"
    write(work / "new")
    with new_folder(target, 0) as folder:
        assert not work.exists()
        write(folder)


def test_a_link_by_the_name_of_a_work_folder_is_not_followed(target, tmp_path):
    files = {"new/mine": b"1", "old/mine": b"2"}
    write(tmp_path / "mine", files)
    (target.parent / ".out.partial-1-abcdefgh").symlink_to(tmp_path / "mine")
    with new_folder(target, 0) as folder:
        write(folder)
    assert content(tmp_path / "mine") == files


@pytest.mark.parametrize("step", ["_open_locked", "_lock"])
def test_a_fresh_work_folder_that_another_run_takes_for_a_left_over_is_made_again(target, monkeypatch, step):
    """Before it is opened, or between that and the lock."""
    function, removed = getattr(module, step), []

    def after_removal(*arguments, **options):
        if not removed:
            removed.extend(target.parent.glob(".out.partial-*"))
            shutil.rmtree(removed[0])
        return function(*arguments, **options)

    monkeypatch.setattr(module, step, after_removal)
    with new_folder(target, 0) as folder:
        assert folder.parent != removed[0]
        write(folder)
    assert content(target) == NEW_FILES
    assert left_over(target) == []


def test_a_file_system_without_locks_is_written_and_left_overs_on_it_stay(target, monkeypatch):
    (target.parent / ".out.partial-1-abcdefgh").mkdir()

    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(module.fcntl, "flock", no_locks)
    with new_folder(target, 0) as folder:
        write(folder)
    assert content(target) == NEW_FILES
    assert left_over(target) == [".out.partial-1-abcdefgh"]


def test_a_second_thread_can_write_too(target):
    def work():
        with new_folder(target, 0) as folder:
            write(folder)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert content(target) == NEW_FILES


# The full disk


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this machine lets us mount no small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def write_bytes(path: Path) -> None:
    path.write_bytes(bytes(2**21))


def write_safetensors(path: Path) -> None:
    save_file({"a": np.zeros(2**19, dtype=np.float32)}, path)


def write_mlx(path: Path) -> None:
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    mx.save_safetensors(str(path.with_suffix(".safetensors")), {"a": mx.zeros(2**19)})


@pytest.mark.parametrize("writer", [write_bytes, write_safetensors, write_mlx])
@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_gives_one_line_and_leaves_nothing(small_disk, writer, there):
    target = small_disk / "out"
    if there:
        write(target, OLD_FILES)
    free = shutil.disk_usage(small_disk).free
    full = pytest.raises(CheckpointError, match="was not written: the disk is full")
    with full as caught, new_folder(target, 1000, overwrite=True) as folder:
        writer(folder / "big.bin")
    assert str(target) in str(caught.value)
    assert (content(target) if there else target.exists()) == (OLD_FILES if there else False)
    assert left_over(target) == []
    assert shutil.disk_usage(small_disk).free == free


def test_a_small_disk_is_refused_before_any_work(small_disk):
    with pytest.raises(CheckpointError, match=r"needs 0\.01 GB, and 0\.00 GB are free"), new_folder(small_disk / "out", 10**7):
        pytest.fail("the work has begun")


def test_a_limit_on_file_sizes_gives_the_same_line(target):
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom mlx_paligemma.common.new_folder import new_folder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n  with new_folder(Path(sys.argv[1]), 0) as f: (f / 'a').write_bytes(bytes(5000))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(target)], check=False, capture_output=True, text=True, timeout=60)
    assert answer.stdout.startswith(f"CheckpointError {target} was not written"), answer
    assert left_over(target) == []


def test_an_error_that_is_not_of_the_disk_keeps_its_own_words(target):
    with pytest.raises(FileNotFoundError), new_folder(target, 0) as folder:
        (folder / "missing").read_bytes()
    with pytest.raises(RuntimeError, match="no kernel"), new_folder(target, 0):
        raise RuntimeError("no kernel")
