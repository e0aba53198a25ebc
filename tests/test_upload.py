"""A folder goes up to the Hub whole, or one line says why not; the folder stays as it was."""

import pytest
from checkpoints import write
from hub_server import HubServer

from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.errors import CheckpointError, OptionError
from mlx_paligemma.common.hub import find_folder
from mlx_paligemma.common.upload import check_upload, upload_folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer() as server:
        server.take_over(monkeypatch, tmp_path / "cache", token="hf_writer")
        yield server


@pytest.fixture
def checkpoint(tmp_path):
    folder = write(tmp_path / "checkpoint", shards=2)
    (folder / "README.md").write_text("---\nlicense: gemma\n---\n")
    return folder


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_hub_then_holds_exactly_these_files(hub, checkpoint, capfd):
    assert upload_folder(checkpoint, "me/model") == f"{hub.endpoint}/me/model"
    assert hub.repos["me/model"].branches["main"] == contents(checkpoint)
    assert not hub.repos["me/model"].private
    assert capfd.readouterr().err == ""


def test_what_went_up_comes_down_the_same(hub, checkpoint):
    upload_folder(checkpoint, "me/model")
    folder = find_folder("me/model")
    assert {name: contents(checkpoint)[name] for name in contents(folder)} == contents(folder)
    assert read_checkpoint(folder).tensors.keys() == read_checkpoint(checkpoint).tensors.keys()


def test_shards_of_an_earlier_upload_go_and_other_files_stay(hub, checkpoint, tmp_path):
    upload_folder(checkpoint, "me/model")
    upload_folder(write(tmp_path / "whole"), "me/model")
    files = hub.repos["me/model"].branches["main"]
    assert [name for name in files if "model.safetensors" in name or "-of-" in name] == ["model.safetensors"]
    assert "README.md" in files
    assert read_checkpoint(find_folder("me/model")).tensors


def test_a_branch_and_a_private_repository_are_made(hub, checkpoint):
    assert upload_folder(checkpoint, "me/model", revision="4bit", private=True) == f"{hub.endpoint}/me/model/tree/4bit"
    assert hub.repos["me/model"].private
    assert hub.repos["me/model"].branches == {"main": {}, "4bit": contents(checkpoint)}


def refusal(folder, repo="me/model", kind=CheckpointError):
    with pytest.raises(kind) as error:
        upload_folder(folder, repo)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nobody_logged_in_is_said_before_anything_is_sent(hub, checkpoint, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "nobody is logged in; run `hf auth login` with a token that may write" in refusal(checkpoint)
    assert hub.log == []


def test_a_token_without_the_right_or_out_of_date_is_said_to_be_so(hub, checkpoint, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "this token may not write there; check the name, run `hf auth login`" in refusal(checkpoint)
    hub.add("me/model", {})
    assert "this token may not write there" in refusal(checkpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert "the Hub refuses the token; make another one that may write" in refusal(checkpoint)
    assert hub.repos["me/model"].branches["main"] == {}


@pytest.mark.parametrize("name", ["model", "me/my model", "me/", "a/b/c", "me/a--b", "", "../model"])
def test_a_name_that_the_hub_does_not_have_is_refused_before_anything_is_sent(name, hub, checkpoint):
    assert "--upload-repo" in refusal(checkpoint, name, OptionError)
    assert hub.log == []


def test_without_the_hub_the_line_says_how_to_go_on(hub, checkpoint, monkeypatch):
    hub.status = 500
    assert "the Hub answers 500 (" in refusal(checkpoint)
    hub.go()
    message = refusal(checkpoint)
    assert "the Hub cannot be reached (" in message
    assert message.endswith(f"run `hf upload me/model {checkpoint}` to go on; the folder {checkpoint} is whole")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; unset it, or leave --upload-repo out" in refusal(checkpoint)


def test_no_folder_or_an_empty_one_is_refused(hub, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        assert "is no folder with files" in refusal(tmp_path / name)
    assert hub.log == []


def test_an_upload_that_can_work_passes_the_check(hub):
    check_upload("me/model")
    assert hub.log == []
