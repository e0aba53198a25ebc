"""A checkpoint is found where it is, on this machine or on the Hub, or one line says what is wrong and what to do."""

import pytest
from checkpoints import write

from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.hub import WANTED_FILES, bundled_checkpoint, find_folder


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
    "google/paligemma2-3b-mix-448": "is not on this machine and the Hub cannot be reached; go online and run `hf download google/",
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


def hub_error(name):
    from huggingface_hub import errors

    kind = getattr(errors, name)
    error = kind.__new__(kind)  # their constructors want the server's answer
    Exception.__init__(error, "404 Client Error.\nIt is not there")
    return error


ANSWERS = {
    "GatedRepoError": "accept it at https://huggingface.co/org/name, then run `hf auth login`",
    "RepositoryNotFoundError": "neither a folder here nor a model on the Hub that you may see",
    "RevisionNotFoundError": "has no revision 'v9' on the Hub",
    "LocalEntryNotFoundError": "go online",
    "HfHubHTTPError": "could not be downloaded (",
}


@pytest.mark.parametrize("name", [*ANSWERS, "disk", "a network library"])
def test_what_the_hub_refuses_is_said_in_one_line(name, monkeypatch):
    other = {"disk": OSError(28, "No space left on device"), "a network library": RuntimeError("peer\nclosed")}
    error = other.get(name) or hub_error(name)

    def refuse(*arguments, **options):
        assert options["allow_patterns"] == WANTED_FILES
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError) as raised:
        find_folder("org/name", revision="v9")
    assert str(raised.value).startswith("org/name ")
    assert ANSWERS.get(name, "could not be downloaded (") in str(raised.value)
    assert "\n" not in str(raised.value)
