"""Where a checkpoint is: the bundled one, a folder, or the Hugging Face Hub, from which it is downloaded once."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import CheckpointError

WANTED_FILES = ["*.json", "*.safetensors", "tokenizer.model", "vae-oid.npz"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def bundled_checkpoint() -> Path:
    """The folder of the demo checkpoint that comes with the package."""
    return Path(__file__).parent.parent / "demo" / "checkpoint"


def find_folder(model: str | Path | None = None, revision: str | None = None) -> Path:
    """The folder of a checkpoint: None for the bundled demo, a folder, or a Hub id, which is downloaded once.

    Raises:
        CheckpointError: no such folder, or the Hub does not give it.
    """
    if model is None:
        return bundled_checkpoint()
    if not isinstance(model, (str, Path)) or not str(model).strip():
        raise CheckpointError(f"model is {model!r}; give a checkpoint's folder, a Hub id, or nothing for the bundled demo")
    try:
        folder = Path(model).expanduser()
        if folder.is_dir():
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
    return _download(str(model), revision)


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=WANTED_FILES))
    except hub.HFValidationError:
        reason = "is neither a folder here nor a Hub id; give a checkpoint's folder or an id such as google/paligemma2-3b-mix-448"
    except hub.GatedRepoError:
        reason = f"needs your consent to its licence: accept it at https://huggingface.co/{repo}, then run `hf auth login`"
    except hub.RevisionNotFoundError:
        reason = f"has no revision {revision!r} on the Hub; leave --revision out or correct it"
    except hub.RepositoryNotFoundError:
        reason = "is neither a folder here nor a model on the Hub that you may see; check the name, or run `hf auth login`"
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled):
        reason = f"is not on this machine and the Hub cannot be reached; go online and run `hf download {repo}` once"
    except Exception as error:  # noqa: BLE001 - the Hub's client lets through what its network libraries raise
        reason = f"could not be downloaded ({' '.join(str(error).split())[:200]}); run the command again to go on"
    raise CheckpointError(f"{repo} {reason}") from None
