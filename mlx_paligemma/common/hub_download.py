"""A checkpoint of the Hub, downloaded once into the Hub's own cache.

The client of the Hub, huggingface_hub, says which files there are, fetches the small ones and keeps the cache. It throws the
begun part of a file away, though, and Ctrl-C waits for its threads. Large files are therefore fetched here, one after
the other: into `blobs/SHA256.incomplete`, which goes on where it stopped, then to `blobs/SHA256`, where the client finds it.
Cache layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import PaliGemmaConfig
from .errors import CheckpointError
from .hub_errors import SPACE, download_error
from .hub_files import wanted_files
from .safetensors_files import weight_files


@dataclass(frozen=True)
class HubFile:
    """A file of a checkpoint on the Hub."""

    name: str
    size: int  # bytes
    sha256: str | None  # of large files (LFS); None: a small one


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit, as far as it is a checkpoint; the smallest files first."""

    repo: str
    commit: str
    files: Sequence[HubFile]


Tell = Callable[[int, int], object]  # bytes that are there, and that there will be


def download(repo: str, revision: str | None = None, tell: Tell | None = None) -> Path:
    """The folder of a model's files in the Hub's cache; what is not there yet is downloaded, and `tell` hears how far it is.

    Without the Hub, what is there already is used, if it is whole.

    Raises:
        CheckpointError: it cannot be had, or is no PaliGemma. The message says what to do.
    """
    listing = None
    try:
        with quiet():
            listing = look_up(repo, revision)
            return _fetch(listing, revision, tell)
    except Exception as error:  # noqa: BLE001 - the client lets through what its network libraries raise
        folder = None if listing else _cached(repo, revision, error)
        if folder is None:
            raise download_error(error, repo, revision, begun=listing is not None) from None
        return folder


@contextmanager
def quiet() -> Iterator[None]:
    """Within it the client keeps its warnings to itself (a connection that it tries again, a token that could be given)."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def look_up(repo: str, revision: str | None) -> Listing:
    """Ask the Hub. Raises what the client raises, and CheckpointError where there are no weights that can be read."""
    from huggingface_hub import HfApi, constants

    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    found = {file.rfilename: file for file in info.siblings or []}
    wanted = [found[name] for name in wanted_files(repo, found)]
    files = [HubFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None) for file in wanted]
    return Listing(repo, str(info.sha), sorted(files, key=lambda file: file.size))


def _cached(repo: str, revision: str | None, error: Exception) -> Path | None:
    """The folder as it was downloaded before, if it is whole and the Hub has not said that it is wrong."""
    from huggingface_hub import errors, snapshot_download

    if isinstance(error, (errors.HFValidationError, errors.RevisionNotFoundError, CheckpointError)):
        return None
    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, ignore_patterns=["*"]))
        names = wanted_files(repo, [file.name for file in folder.iterdir() if file.is_file()])
        if any(name.endswith(".safetensors") for name in names):
            weight_files(folder)
    except (errors.LocalEntryNotFoundError, CheckpointError):
        return None
    return folder


def _fetch(listing: Listing, revision: str | None, tell: Tell | None) -> Path:
    """Download what is missing. A branch's name comes into the cache last: what can be found by it is whole."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    missing = [file for file in listing.files if not is_cached(listing, file)]
    _check_space(listing, missing)
    count = _Count(sum(file.size for file in missing if file.sha256), tell)
    for file in listing.files:
        if file.sha256 is not None and file in missing:
            _fetch_large(listing, file, count)
        path = Path(hf_hub_download(listing.repo, file.name, revision=listing.commit))  # asks nobody about a file that is there
        if file.name == "config.json":  # before gigabytes of another kind of model
            PaliGemmaConfig.from_folder(path.parent)
    folder, smallest = path.parent, listing.files[0].name
    if try_to_load_from_cache(listing.repo, smallest, revision=revision) != str(folder / smallest):
        hf_hub_download(listing.repo, smallest, revision=revision)
    return folder


def is_cached(listing: Listing, file: HubFile) -> bool:
    """Whether a file is here already."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(listing.repo, file.name, revision=listing.commit), str)


def _check_space(listing: Listing, missing: Sequence[HubFile]) -> None:
    begun = [_incomplete(listing, file) for file in missing if file.sha256]
    wanted = sum(file.size for file in missing) - sum(path.stat().st_size for path in begun if path.is_file())
    cache = _blobs(listing.repo)
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.is_dir())).free
    if wanted > free:
        raise CheckpointError(
            f"{listing.repo} needs {wanted / 1e9:.2f} GB more on the disk of {cache}, which has {free / 1e9:.2f} GB left; {SPACE}"
        )


def _fetch_large(listing: Listing, file: HubFile, count: _Count) -> None:
    """Put a large file among the blobs. What an earlier try has left is kept, and the whole is checked by its SHA-256."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    blob, part = _blobs(listing.repo) / str(file.sha256), _incomplete(listing, file)
    lock = Path(constants.HF_HUB_CACHE).expanduser() / ".locks" / blob.parent.parent.name / f"{file.sha256}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            count.end(file.size)
            return
        if part.is_file() and part.stat().st_size > file.size:
            part.unlink()
        url = hf_hub_url(listing.repo, file.name, revision=listing.commit)
        headers = build_hf_headers(headers={"Accept-Encoding": "identity"})  # a packed file could not go on in its middle
        with io.BufferedWriter(_CountedFile(part, count)) as stream:
            begun = stream.tell()
            count.at(begun)
            http_get(url, stream, resume_size=begun, headers=headers, expected_size=file.size, displayed_filename=file.name)
        _check_content(listing, file, part)
        part.replace(blob)
    count.end(file.size)


@dataclass
class _Count:
    """How many bytes of large files are there."""

    total: int
    tell: Tell | None
    whole: int = 0  # bytes of those that are whole

    def at(self, size: int) -> None:
        """So many bytes of the next file are there."""
        if self.tell is not None:
            self.tell(self.whole + size, self.total)

    def end(self, size: int) -> None:
        """A file of this size is whole."""
        self.whole += size
        self.at(0)


class _CountedFile(io.FileIO):
    """A file to append to, whose bytes are counted."""

    def __init__(self, path: Path, count: _Count):
        super().__init__(path, "ab")
        self._count = count

    def write(self, data: Any, /) -> int:
        """The same, counted."""
        size = super().write(data)
        self._count.at(self.tell())
        return size


def _check_content(listing: Listing, file: HubFile, part: Path) -> None:
    with part.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256:
            return
    part.unlink()
    raise CheckpointError(f"{listing.repo}: {file.name} came in damaged and was removed; run the command again to fetch it anew")


def _incomplete(listing: Listing, file: HubFile) -> Path:
    return _blobs(listing.repo) / f"{file.sha256}.incomplete"


def _blobs(repo: str) -> Path:
    """Where the client keeps the contents of a repository's files, each under its hash."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
