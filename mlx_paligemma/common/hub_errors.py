"""What huggingface_hub raises, as one line: what is wrong, and the command that helps."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

SPACE = "free some space, or set HF_HOME to a folder on another disk, and run the command again to go on"


def download_error(error: Exception, repo: str, revision: str | None, begun: bool) -> CheckpointError:
    """Why a model cannot be had from the Hub. `begun`: the Hub has said which files there are."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    if isinstance(error, CheckpointError):
        return error
    if isinstance(error, hub.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # of a small file that could not be fetched
    command = f"`hf download {repo}{f' --revision {revision}' if revision else ''}`"
    match error:
        case hub.HFValidationError():
            reason = (
                "is neither a folder here nor a Hub id; give a checkpoint's folder or an id such as google/paligemma2-3b-mix-448"
            )
        case hub.GatedRepoError():
            reason = f"needs your consent to its licence: accept it at {constants.ENDPOINT}/{repo}, then run `hf auth login`"
        case hub.RevisionNotFoundError():
            reason = f"has no revision {revision!r} on the Hub; leave --revision out or correct it"
        case hub.RepositoryNotFoundError():
            reason = "is neither a folder here nor a model on the Hub that you may see; check the name, or run `hf auth login`"
        case hub.OfflineModeIsEnabled():
            reason = f"is not on this machine, or not whole, and HF_HUB_OFFLINE is set; unset it and run {command} once"
        case hub.HfHubHTTPError():
            reason = _answer(error, f"run {command}, or this command again, to go on")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            reason = f"does not fit on the disk of {constants.HF_HUB_CACHE}; {SPACE}"
        case OSError(errno=errno.EACCES | errno.EPERM | errno.EROFS):
            reason = (
                f"cannot be written to {constants.HF_HUB_CACHE} ({one_line(error)}); set HF_HOME to a folder that you may write to"
            )
        case _ if begun:
            reason = f"could not be downloaded to the end ({one_line(error)}); run the command again to go on where it stopped"
        case _:
            reason = f"is not on this machine and the Hub cannot be reached ({one_line(error)}); go online and run {command} once"
    return CheckpointError(f"{repo} {reason}")


def _answer(error: HfHubHTTPError, again: str) -> str:
    """Of an HTTP status that has no error of its own."""
    status = error.response.status_code
    if status == 401:
        return "cannot be downloaded with this token, which the Hub refuses; make another one and run `hf auth login`"
    if status == 403:
        return f"cannot be downloaded with this token ({one_line(error)}); give it the right to read, or run `hf auth login`"
    if status == 429:
        return f"cannot be downloaded now, the Hub wants fewer requests; wait some minutes or run `hf auth login`, and {again}"
    return f"cannot be downloaded now, the Hub answers {status}; wait some minutes and {again}"


def upload_error(error: Exception, repo: str, folder: Path) -> CheckpointError:
    """Why a folder could not be put on the Hub."""
    from huggingface_hub import errors as hub

    error = error.__cause__ if isinstance(error.__cause__, hub.HfHubHTTPError) else error  # of one file's upload
    again = f"run `hf upload {repo} {folder}` to go on"
    match error:
        case hub.HfHubHTTPError(response=answer) if answer.status_code == 401:
            reason = "the Hub refuses the token; make another one that may write, run `hf auth login`, then "
        case hub.HfHubHTTPError(response=answer) if answer.status_code in (403, 404):
            reason = "this token may not write there; check the name, run `hf auth login` with a token that may write, then "
        case hub.HfHubHTTPError(response=answer):
            reason = f"the Hub answers {answer.status_code} ({one_line(error)}); wait some minutes and "
        case _:
            reason = f"the Hub cannot be reached ({one_line(error)}); check the network and "
    return CheckpointError(f"{repo} could not be uploaded: {reason}{again}; the folder {folder} is whole")


def one_line(error: Exception) -> str:
    """What an error says, or what it is, in one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
