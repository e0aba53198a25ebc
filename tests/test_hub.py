"""A checkpoint is found where it is, on this machine or on the Hub, or one line says what is wrong and what to do."""

import os
import pty
import signal
import sys
import termios
import time
from subprocess import PIPE, Popen

import pytest
from checkpoints import config_json, write
from hub_server import Cut, HubServer
from program import PICTURE, one_line

from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.hub import bundled_checkpoint, find_folder


def test_a_folder_is_found_by_its_path(tmp_path, monkeypatch):
    write(tmp_path / "home" / "my.model")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "home/my.model", str(tmp_path / "home/my.model"), "home/my.model", "~/my.model"):
        assert read_checkpoint(find_folder(name)).tensors


def test_no_model_means_the_bundled_one():
    assert find_folder(None) == bundled_checkpoint()
    assert bundled_checkpoint().parts[-3:] == ("mlx_paligemma", "demo", "checkpoint")


NO_FOLDERS = {
    "no/such/folder": "no such folder; give a checkpoint's folder or a Hub id",
    "nothing": "no such folder",
    "org/name/": "no such folder",
    "two words/name": "no such folder",
    "a\0b": "no such folder",
    "../nothing": "neither a folder here nor a Hub id",
    "./nothing": "neither a folder here nor a Hub id",
    "a--b/c": "neither a folder here nor a Hub id",
    f"a/{'b' * 200}": "neither a folder here nor a Hub id",
    "~nobody-of-that-name/model": "cannot be looked up",
    "x" * 5000: "cannot be looked up (File name too long)",
    "google/paligemma2-3b-mix-448": "is not on this machine, or not whole, and HF_HUB_OFFLINE is set; unset it and run `hf",
}


@pytest.mark.parametrize("name", NO_FOLDERS, ids=[name[:20].replace("\0", "0") for name in NO_FOLDERS])
def test_a_model_that_cannot_be_found_gives_one_clear_line(name, monkeypatch, tmp_path):
    offline(monkeypatch, tmp_path)
    with pytest.raises(CheckpointError) as error:
        find_folder(name)
    assert NO_FOLDERS[name] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_is_no_folder(tmp_path):
    folder = write(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="is a file; --model wants the folder it lies in"):
        find_folder(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["pt_224.npz", "pt_896.b16.npz.part00"])
def test_an_npz_or_a_piece_of_one_is_found_as_it_is(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    assert find_folder(str(tmp_path / name)) == tmp_path / name


def test_the_mask_codec_is_no_checkpoint(tmp_path):
    (tmp_path / "vae-oid.npz").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file"):
        find_folder(tmp_path / "vae-oid.npz")


def test_a_model_that_was_downloaded_before_is_found_without_the_hub(monkeypatch, tmp_path):
    offline(monkeypatch, tmp_path)
    cached = tmp_path / "hub" / "models--org--name"
    snapshot = write(cached / "snapshots" / "0123456789", shards=2)
    (cached / "blobs").mkdir()
    for count, file in enumerate(list(snapshot.iterdir())):  # the Hub's cache holds links
        file.symlink_to(file.rename(cached / "blobs" / str(count)))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123456789")
    assert read_checkpoint(find_folder("org/name")).tensors
    with pytest.raises(CheckpointError, match="is not on this machine"):
        find_folder("org/name", revision="other")


def offline(monkeypatch, tmp_path):
    """An empty cache, and no Hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def command(hub, cache, *arguments, model="org/name", **environment):
    """`mlx-paligemma generate` in a process of its own, which takes the stand-in for the Hub."""
    program = [sys.executable, "-m", "mlx_paligemma", "generate", PICTURE, "-p", "detect circle", "--model", model, *arguments]
    return Popen(program, env=hub.environment(cache, **environment), stdout=PIPE, stderr=PIPE, text=True)


def ended(process):
    """(exit code, stdout, stderr)"""
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, out, err


def test_a_model_of_the_hub_answers_as_the_same_folder_does_and_then_offline(hub, tmp_path):
    hub.add("org/name", bundled_checkpoint())
    folder = ended(command(hub, tmp_path, model=str(bundled_checkpoint())))
    assert folder[0] == 0
    assert "<loc" in folder[1]
    assert ended(command(hub, tmp_path)) == folder
    sent = hub.sent()
    assert sent == sum(len(content) for content in hub.blobs.values())
    assert ended(command(hub, tmp_path, HF_HUB_OFFLINE="1")) == folder
    assert hub.sent() == sent
    code, out, err = ended(command(hub, tmp_path, "--revision", "v2", HF_HUB_OFFLINE="1"))
    assert (code, out) == (1, "")
    one_line(err, "error: org/name is not on this machine", "unset it and run `hf download org/name --revision v2` once")


def test_a_revision_is_asked_for_by_its_name(hub, tmp_path):
    hub.add("org/name", {"config.json": b"{}", "model.safetensors": b"of another kind"})
    hub.add("org/name", bundled_checkpoint(), revision="demo")
    code, out, _ = ended(command(hub, tmp_path, "--revision", "demo"))
    assert (code, "<loc" in out) == (0, True)
    code, out, err = ended(command(hub, tmp_path, "--revision", "demo2"))
    assert (code, out) == (1, "")
    one_line(err, "error: org/name has no revision 'demo2' on the Hub")


@pytest.mark.parametrize("token", [None, "hf_reader"])
def test_a_gated_model_ends_with_one_line_and_what_to_do(hub, tmp_path, token):
    hub.add("org/name", bundled_checkpoint(), gated=True)
    code, out, err = ended(command(hub, tmp_path, **({"HF_TOKEN": token} if token else {})))
    assert (code, out) == (1, "")
    one_line(err, "error: org/name needs your consent to its licence", "then run `hf auth login`")


def test_a_model_that_is_not_there_ends_with_one_line_and_what_to_do(hub, tmp_path):
    code, out, err = ended(command(hub, tmp_path))
    assert (code, out) == (1, "")
    one_line(err, "error: org/name is neither a folder here nor a model on the Hub", "run `hf auth login`")


CHUNK = 10 * 2**20  # of bytes, that the Hub's client writes at once


@pytest.fixture
def large(tmp_path):
    """A checkpoint whose weights take more than one chunk."""
    return write(tmp_path / "large", data=config_json(text={"vocab_size": 257216}))


def ranges(hub):
    return [request.range for request in hub.requests(max(hub.blobs, key=lambda oid: len(hub.blobs[oid])))]


def test_a_lost_connection_ends_with_one_line_and_the_next_run_goes_on(hub, large, tmp_path):
    hub.add("org/name", large)
    hub.cuts = [Cut(CHUNK + 1)]
    code, out, err = ended(command(hub, tmp_path / "cache", "-m", "1"))
    assert (code, out) == (1, "")
    one_line(err, "error: org/name could not be downloaded to the end", "run the command again to go on where it stopped")
    hub.cuts = [Cut(2**20, "close")]  # after which the client goes on by itself
    code, _, err = ended(command(hub, tmp_path / "cache", "-m", "1"))
    assert code == 0
    one_line(err, "note: cut off after 1 tokens")
    assert ranges(hub) == [None, f"bytes={CHUNK}-", f"bytes={CHUNK}-"]


def test_ctrl_c_ends_a_download_at_once_with_one_line_and_the_next_run_goes_on(hub, large, tmp_path):
    hub.add("org/name", large)
    hub.cuts = [Cut(CHUNK + 1, "stall")]
    process = command(hub, tmp_path / "cache", "-m", "1")
    eventually(lambda: [part.stat().st_size for part in (tmp_path / "cache").rglob("*.incomplete")] == [CHUNK])
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    assert ended(process) == (130, "", "error: interrupted\n")
    assert time.monotonic() - start < 8.0  # the client itself waits 10 s for a server that sends nothing
    assert ended(command(hub, tmp_path / "cache", "-m", "1"))[0] == 0
    assert ranges(hub) == [None, f"bytes={CHUNK}-"]


def eventually(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_terminal_sees_how_far_a_download_is(hub, tmp_path):
    hub.add("org/name", write(tmp_path / "checkpoint"))
    script = "from mlx_paligemma.common.hub import find_folder; find_folder('org/name')"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with Popen([sys.executable, "-c", script], env=hub.environment(tmp_path / "cache"), stderr=theirs) as process:
        os.close(theirs)
    assert process.returncode == 0
    shown = os.read(ours, 2**16).decode()
    assert "model.safetensors: 100%" in shown
    assert "config.json: 100%" in shown
