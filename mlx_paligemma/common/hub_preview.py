"""What a model of the Hub would take, before gigabytes of it are downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .config import PaliGemmaConfig
from .hub import local_folder
from .hub_download import is_cached, look_up, quiet

WEIGHTS = (".safetensors", ".npz")


@dataclass(frozen=True)
class Preview:
    """A model that is not here yet."""

    config: PaliGemmaConfig
    weights: int  # bytes of its weights' files
    missing: int  # bytes that are to be downloaded


def preview(model: str | Path | None, revision: str | None = None) -> Preview | None:
    """None where nothing has to be downloaded, or where the Hub does not say: the download itself then tells why.

    Raises:
        CheckpointError: it is neither a folder nor a Hub id.
    """
    if local_folder(model) is not None:
        return None
    try:
        with quiet():
            return _preview(str(model), revision)
    except Exception:  # noqa: BLE001 - no network, no such model, no right to it, no config.json beside an npz
        return None


def _preview(repo: str, revision: str | None) -> Preview | None:
    from huggingface_hub import hf_hub_download

    listing = look_up(repo, revision)
    missing = sum(file.size for file in listing.files if not is_cached(listing, file))
    if not missing:
        return None
    config = PaliGemmaConfig.from_folder(Path(hf_hub_download(repo, "config.json", revision=listing.commit)).parent)
    return Preview(config, sum(file.size for file in listing.files if file.name.endswith(WEIGHTS)), missing)
