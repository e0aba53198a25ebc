"""A model comes from the Hub once, only what is needed of it, and a broken download goes on where it stopped."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from checkpoints import config_json, write
from hub_server import Cut, HubServer

from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.hub_download import download

WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer() as server:
        server.take_over(monkeypatch, tmp_path / "cache")
        yield server


@pytest.fixture
def checkpoint(tmp_path):
    return write(tmp_path / "checkpoint")


@pytest.fixture
def large(tmp_path):
    """Its weights, of 16 MB, take the client more than one chunk of 10 MB."""
    return write(tmp_path / "large", data=config_json(text={"vocab_size": 257216}))


def refusal(revision=None):
    with pytest.raises(CheckpointError) as error:
        download("org/name", revision)
    assert str(error.value).startswith("org/name")
    assert "\n" not in str(error.value)
    return str(error.value)


def offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_what_comes_down_is_what_lies_there_and_no_file_that_is_not_needed(hub, checkpoint):
    for name in ("pytorch_model.bin", "model.gguf", "tf_model.h5", "flax_model.msgpack", "pt_224.npz", "README.md"):
        (checkpoint / name).write_bytes(b"not needed")
    hub.add("org/name", checkpoint)
    folder = download("org/name")
    assert {file.name for file in folder.iterdir()} == {"config.json", "tokenizer.model", WEIGHTS}
    assert all((folder / file.name).read_bytes() == (checkpoint / file.name).read_bytes() for file in folder.iterdir())
    assert read_checkpoint(folder).tensors


def test_files_in_subfolders_stay_there(hub, checkpoint):
    hub.add("org/name", {file.name: file.read_bytes() for file in checkpoint.iterdir()} | {"old/other.safetensors": b"0" * 10})
    assert not (download("org/name") / "old").exists()


def test_a_second_time_nothing_is_fetched(hub, checkpoint):
    hub.add("org/name", checkpoint)
    first = download("org/name")
    hub.log.clear()
    assert download("org/name") == first
    assert [request.method for request in hub.log] == ["GET"]  # the question which commit it is
    assert hub.sent() == 0


def test_a_warm_cache_is_enough_without_the_hub(hub, checkpoint, monkeypatch):
    hub.add("org/name", checkpoint)
    first = download("org/name")
    hub.status = 503
    assert download("org/name") == first
    hub.go()
    assert download("org/name") == first
    offline(monkeypatch)
    assert download("org/name") == first


def test_a_new_commit_fetches_only_what_is_new(hub, checkpoint):
    hub.add("org/name", checkpoint)
    first, sent = download("org/name"), hub.sent()
    (checkpoint / "config.json").write_text(json.dumps(config_json(dtype="float32")))
    hub.add("org/name", checkpoint)
    second = download("org/name")
    assert second != first
    assert hub.sent() == sent
    assert "float32" in (second / "config.json").read_text()


def test_a_revision_has_its_own_files(hub, checkpoint, tmp_path, monkeypatch):
    hub.add("org/name", checkpoint)
    files = hub.add("org/name", write(tmp_path / "other", shards=2), revision="bfloat16").files("bfloat16")
    folder = download("org/name", "bfloat16")
    assert {file.name for file in folder.iterdir()} == set(files)
    assert download("org/name", folder.name) == folder  # by its commit
    offline(monkeypatch)
    assert download("org/name", "bfloat16") == folder
    assert "is not on this machine" in refusal()  # main is another thing


CHUNK = 10 * 2**20  # of bytes, that the client writes at once
BREAK = CHUNK + 2**20


def weight_requests(hub):
    """Those to the storage for the largest file."""
    return hub.requests(max(hub.blobs, key=lambda oid: len(hub.blobs[oid])))


def test_a_connection_cut_in_the_middle_of_a_file_goes_on_by_itself(hub, large, capfd):
    hub.add("org/name", large)
    hub.cuts = [Cut(BREAK, "close")]
    folder = download("org/name")
    assert (folder / WEIGHTS).read_bytes() == (large / WEIGHTS).read_bytes()
    assert [request.range for request in weight_requests(hub)] == [None, f"bytes={CHUNK}-"]
    assert [request.sent for request in weight_requests(hub)] == [BREAK, (large / WEIGHTS).stat().st_size - CHUNK]
    assert capfd.readouterr().err == ""


def test_a_broken_download_goes_on_in_the_next_run(hub, large, tmp_path):
    hub.add("org/name", large)
    hub.cuts = [Cut(BREAK)]
    assert "run the command again to go on where it stopped" in refusal()
    [part] = (tmp_path / "cache").rglob("*.incomplete")
    assert part.read_bytes() == (large / WEIGHTS).read_bytes()[:CHUNK]
    folder = download("org/name")
    assert (folder / WEIGHTS).read_bytes() == (large / WEIGHTS).read_bytes()
    assert [request.range for request in weight_requests(hub)] == [None, f"bytes={CHUNK}-"]
    assert [request.sent for request in weight_requests(hub)] == [BREAK, (large / WEIGHTS).stat().st_size - CHUNK]
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_a_server_that_does_not_go_on_in_the_middle_sends_the_whole_file_again(hub, large):
    hub.add("org/name", large)
    hub.cuts, hub.ranges = [Cut(BREAK)], False
    refusal()
    assert (download("org/name") / WEIGHTS).read_bytes() == (large / WEIGHTS).read_bytes()
    assert [request.sent for request in weight_requests(hub)] == [BREAK, (large / WEIGHTS).stat().st_size]


def test_two_that_want_the_same_model_at_once_fetch_it_once(hub, large):
    hub.add("org/name", large)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(download, ["org/name"] * 2)
    assert first == second
    assert (first / WEIGHTS).read_bytes() == (large / WEIGHTS).read_bytes()
    assert len(weight_requests(hub)) == 1


def test_a_model_that_came_down_in_part_is_not_used_without_the_hub(hub, large, monkeypatch):
    hub.add("org/name", large)
    hub.cuts = [Cut(BREAK)]
    refusal()
    offline(monkeypatch)
    assert "is not on this machine, or not whole, and HF_HUB_OFFLINE is set; unset it and run `hf download org/name`" in refusal()


def test_pieces_that_did_not_all_come_are_not_used_without_the_hub(hub, monkeypatch):
    hub.add("org/name", {"a.npz.part00": bytes(10), "a.npz.part01": bytes(2**20)})
    hub.cuts = [Cut(10)]
    refusal()
    offline(monkeypatch)
    assert "or not whole" in refusal()


def test_a_folder_that_lost_a_shard_is_not_used_without_the_hub(hub, tmp_path, monkeypatch):
    hub.add("org/name", write(tmp_path / "checkpoint", shards=2))
    (download("org/name") / "model-00002-of-00002.safetensors").unlink()
    offline(monkeypatch)
    assert "or not whole" in refusal()


def test_a_revision_that_the_hub_has_no_more_is_said_to_be_gone(hub, checkpoint):
    repo = hub.add("org/name", checkpoint, revision="v9")
    download("org/name", "v9")
    del repo.branches["v9"]
    assert "has no revision 'v9' on the Hub" in refusal("v9")


def told_of_download():
    """What is told while it comes down: bytes that are there, and that there will be."""
    told = []
    download("org/name", tell=lambda *counts: told.append(counts))
    return told


def test_it_is_told_how_far_a_download_is(hub, large):
    hub.add("org/name", large)
    total = sum(len(content) for content in hub.blobs.values())
    told = told_of_download()
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    assert told == sorted(told)
    assert {CHUNK, CHUNK + (large / "tokenizer.model").stat().st_size} & {done for done, _ in told}  # the tokenizer may be first
    assert told_of_download() == []  # nothing is missing


def test_a_resumed_download_is_told_from_what_there_is(hub, large):
    hub.add("org/name", large)
    total = sum(len(content) for content in hub.blobs.values())
    hub.cuts = [Cut(BREAK)]
    refusal()
    told = told_of_download()
    assert told[0][0] >= CHUNK
    assert told[-1][0] == told[-1][1] <= total
    assert told == sorted(told)


def test_bytes_that_are_sent_again_are_not_told_twice(hub, large):
    hub.add("org/name", large)
    hub.cuts, hub.ranges = [Cut(BREAK)], False
    refusal()
    told = told_of_download()
    assert all(done <= total for done, total in told)
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told].count(told[-1][1]) <= 2  # not before it is whole


def leave(hub, cache, content):
    """What an earlier download of the weights has left."""
    largest = max(hub.blobs, key=lambda oid: len(hub.blobs[oid]))
    part = cache / "models--org--name" / "blobs" / f"{largest}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    return part


def test_a_damaged_beginning_is_found_out_and_fetched_anew(hub, checkpoint, tmp_path):
    hub.add("org/name", checkpoint)
    part = leave(hub, tmp_path / "cache", b"damaged")
    assert f"{WEIGHTS} came in damaged and was removed; run the command again" in refusal()
    assert not part.exists()
    assert read_checkpoint(download("org/name")).tensors


def test_a_beginning_that_is_longer_than_the_file_is_fetched_anew(hub, checkpoint, tmp_path):
    hub.add("org/name", checkpoint)
    leave(hub, tmp_path / "cache", (checkpoint / WEIGHTS).read_bytes() + b"more")
    assert (download("org/name") / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()


def test_a_file_that_came_whole_before_the_program_ended_is_not_fetched_again(hub, checkpoint, tmp_path):
    hub.add("org/name", checkpoint)
    leave(hub, tmp_path / "cache", (checkpoint / WEIGHTS).read_bytes())
    assert (download("org/name") / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()
    assert weight_requests(hub) == []


def test_a_gated_model_asks_for_consent_and_comes_with_a_token_that_has_it(hub, checkpoint, tmp_path, monkeypatch):
    hub.add("org/name", checkpoint, gated=True)
    consent = f"needs your consent to its licence: accept it at {hub.endpoint}/org/name, then run `hf auth login`"
    assert consent in refusal()
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert consent in refusal()
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert read_checkpoint(download("org/name")).tensors


def test_a_token_goes_to_the_hub_and_not_to_the_storage(hub, checkpoint, monkeypatch):
    hub.add("org/name", checkpoint, private=True)
    assert "check the name, or run `hf auth login`" in refusal()
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    hub.log.clear()
    download("org/name")
    assert {request.token for request in hub.log if "org/name" in request.path} == {"hf_reader"}
    assert {request.token for request in weight_requests(hub)} == {None}


def test_a_token_that_the_hub_refuses_is_said_to_be_so(hub, checkpoint, monkeypatch):
    hub.add("org/name", checkpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert "with this token, which the Hub refuses; make another one and run `hf auth login`" in refusal()


def test_what_is_not_there_is_said_to_be_so(hub, checkpoint):
    assert "is neither a folder here nor a model on the Hub that you may see" in refusal()
    hub.add("org/name", checkpoint)
    assert "has no revision 'v9' on the Hub; leave --revision out or correct it" in refusal("v9")


def test_a_hub_that_is_out_of_order_or_out_of_reach_is_said_to_be_so(hub, checkpoint):
    hub.add("org/name", checkpoint)
    hub.status = 503
    assert "the Hub answers 503; wait some minutes and run `hf download org/name`" in refusal()
    hub.go()
    assert "is not on this machine and the Hub cannot be reached (" in refusal()
    assert "Connection refused" in refusal()
    assert "go online and run `hf download org/name --revision v9` once" in refusal("v9")


def test_a_hub_that_does_not_answer_is_not_waited_for_for_long(hub, checkpoint, monkeypatch):
    from huggingface_hub import constants

    hub.add("org/name", checkpoint)
    folder = download("org/name")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    hub.delay = 5.0
    start = time.monotonic()
    assert download("org/name") == folder  # what is there
    assert "the Hub cannot be reached (timed out)" in refusal("v9")
    assert time.monotonic() - start < 5.0


def test_a_full_disk_is_noticed_before_the_download(hub, checkpoint, monkeypatch):
    hub.add("org/name", checkpoint)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert "GB left; free some space, or set HF_HOME to a folder on another disk" in refusal()
    assert hub.sent() == 0


def test_a_full_disk_is_enough_for_what_is_there_already(hub, checkpoint, monkeypatch):
    hub.add("org/name", checkpoint)
    folder = download("org/name")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert download("org/name") == folder


def test_a_disk_that_fills_up_meanwhile_is_said_to_be_full(hub, checkpoint, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, os.strerror(28))

    hub.add("org/name", checkpoint)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    assert "does not fit on the disk of" in refusal()


def test_another_kind_of_model_is_refused_before_its_weights_are_fetched_every_time(hub, checkpoint):
    (checkpoint / "config.json").write_text('{"model_type": "llama"}')
    hub.add("org/name", checkpoint)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="model_type is 'llama', not 'paligemma'"):
            download("org/name")
    assert weight_requests(hub) == []


def test_pickled_weights_are_refused_before_they_are_fetched(hub, checkpoint):
    (checkpoint / WEIGHTS).rename(checkpoint / "pytorch_model.bin")
    hub.add("org/name", checkpoint)
    assert "pickled weights (pytorch_model.bin) are not read, since they can run programs" in refusal()
    assert hub.sent() == 0


def test_an_npz_repository_gives_its_pieces(hub, monkeypatch):
    files = {"pt_896.npz.part00": b"a" * 5, "pt_896.npz.part01": b"b" * 5, "README.md": b"", "vae-oid.npz": b"codec"}
    hub.add("org/name", files)
    folder = download("org/name")
    assert sorted(file.name for file in folder.iterdir()) == ["pt_896.npz.part00", "pt_896.npz.part01", "vae-oid.npz"]
    offline(monkeypatch)
    assert download("org/name") == folder
