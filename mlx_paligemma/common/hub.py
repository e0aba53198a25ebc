"""Where a checkpoint is: the bundled one, a folder, or the Hugging Face Hub, from which it is downloaded once."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import CheckpointError
from .hub_download import Tell, download
from .hub_files import is_npz

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def bundled_checkpoint() -> Path:
    """The folder of the demo checkpoint that comes with the package."""
    return Path(__file__).parent.parent / "demo" / "checkpoint"


def find_folder(model: str | Path | None = None, revision: str | None = None, tell: Tell | None = None) -> Path:
    """Where a checkpoint is: None for the bundled demo, a folder, or a Hub id, which is downloaded once while `tell` hears of it.

    An `.npz` file, or a piece of one (`.npz.part00`), is a whole checkpoint: its own path is returned. Of a Hub id whose
    weights are npz, the folder is returned.

    Raises:
        CheckpointError: no such folder, or the Hub does not give it.
    """
    folder = local_folder(model)
    return download(str(model), revision, tell) if folder is None else folder


def local_folder(model: str | Path | None) -> Path | None:
    """Where a checkpoint of this machine is, as of `find_folder`; None for a Hub id. Raises CheckpointError for neither."""
    if model is None:
        return bundled_checkpoint()
    if not isinstance(model, (str, Path)) or not str(model).strip():
        raise CheckpointError(f"model is {model!r}; give a checkpoint's folder, a Hub id, or nothing for the bundled demo")
    try:
        folder = Path(model).expanduser()
        if folder.is_dir() or (folder.is_file() and is_npz(folder.name)):
            return folder
        is_file = folder.exists()
    except (OSError, RuntimeError) as error:  # a name too long, the home of a user that does not exist
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{model} cannot be looked up ({reason}); check the path") from None
    if is_file:
        raise CheckpointError(f"{model} is a file; --model wants the folder it lies in")
    if not _HUB_ID.fullmatch(str(model)):
        raise CheckpointError(
            f"{model}: no such folder; give a checkpoint's folder or a Hub id such as google/paligemma2-3b-mix-448"
        )
    return None
