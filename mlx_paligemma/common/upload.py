"""A checkpoint's folder, put on the Hub as a model of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CheckpointError, OptionError
from .hub_download import quiet
from .hub_errors import upload_error

OLD_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]  # shards of an earlier upload would be read with the new ones


def check_upload(repo: str) -> None:
    """Look before a long conversion whether an upload can work: the name, and that someone is logged in. Asks no server.

    Raises:
        OptionError: the name is none that the Hub has.
        CheckpointError: nobody is logged in, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import get_token
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise OptionError(f"--upload-repo {repo!r} is no name of a model on the Hub; give one such as your-name/my-model") from None
    if "/" not in repo:
        raise OptionError(f"--upload-repo {repo!r} lacks your name on the Hub; give one such as your-name/{repo}")
    if is_offline_mode():
        raise CheckpointError(f"{repo} cannot be uploaded: HF_HUB_OFFLINE is set; unset it, or leave --upload-repo out")
    if get_token() is None:
        raise CheckpointError(f"{repo} cannot be uploaded: nobody is logged in; run `hf auth login` with a token that may write")


def upload_folder(folder: Path, repo: str, revision: str | None = None, private: bool | None = None) -> str:
    """Put a folder's files on the Hub, into a repository that is made if it is not there.

    Args:
        folder: everything in it goes up, save for `.git` and the like.
        repo: "name/model". Weights that it holds already and `folder` does not are removed.
        revision: a branch, made if it is not there; None: main.
        private: of a repository that is made; None: as the account has it by default.

    Returns:
        The address of the repository.

    Raises:
        OptionError: the name is none that the Hub has.
        CheckpointError: the folder is not there or empty, or the Hub does not take it; the message says what to do.
    """
    from huggingface_hub import HfApi

    check_upload(repo)
    if not folder.is_dir() or not any(folder.iterdir()):
        raise CheckpointError(f"{folder} is no folder with files; upload a converted checkpoint")
    api = HfApi()
    try:
        with quiet(), _bars_on_terminals_only():
            address = str(api.create_repo(repo, private=private, exist_ok=True))
            if revision is not None:
                api.create_branch(repo, branch=revision, exist_ok=True)
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=revision,
                commit_message="Upload checkpoint with mlx-paligemma",
                delete_patterns=OLD_WEIGHTS,
            )
    except Exception as error:  # noqa: BLE001 - the client lets through what its network libraries raise
        raise upload_error(error, repo, folder) from None
    return address if revision is None else f"{address}/tree/{revision}"


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """The client draws the progress of an upload into files and pipes as well."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    unwanted = not sys.stderr.isatty() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None  # else the user has decided
    if unwanted:
        disable_progress_bars()
    try:
        yield
    finally:
        if unwanted:
            enable_progress_bars()
