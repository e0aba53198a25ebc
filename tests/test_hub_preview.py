"""What a model would take is known before it is downloaded."""

import pytest
from checkpoints import config_json, write
from hub_server import HubServer

from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.hub_download import download
from mlx_paligemma.common.hub_preview import preview

WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer() as server:
        server.take_over(monkeypatch, tmp_path / "cache")
        yield server


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "checkpoint", data=config_json(text={"vocab_size": 257216}))


def test_sizes_and_config_come_without_the_weights(hub, folder, tmp_path):
    hub.add("org/name", folder)
    found = preview("org/name")
    assert found.weights == (folder / WEIGHTS).stat().st_size
    assert found.missing == sum(file.stat().st_size for file in folder.iterdir())
    assert found.config.text.vocab_size == 257216
    fetched = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file() and not file.is_symlink())
    assert fetched < 10_000


def test_what_is_here_needs_no_preview(hub, folder):
    hub.add("org/name", folder)
    download("org/name")
    assert preview("org/name") is None
    assert preview(folder) is None
    assert preview(None) is None


def test_what_the_hub_does_not_have_is_left_to_the_download_to_explain(hub):
    assert preview("org/none") is None
    with pytest.raises(CheckpointError, match="no such folder"):
        preview("no/such/folder")
