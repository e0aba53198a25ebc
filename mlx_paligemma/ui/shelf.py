"""The loaded models by their place: the one that answers, and the one that it is compared with. They can be swapped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass

from ..backends import open_backend
from ..common.checkpoint import Checkpoint, check_dtype, read_checkpoint
from ..common.errors import BusyError, OptionError, TooLargeError
from ..common.hub import find_folder
from ..common.hub_download import Tell
from ..common.hub_preview import preview
from ..common.memory import HALF, gigabytes, model_bytes
from .model_spec import ModelSpec
from .runners import Runner, load_runner

MAIN, SECOND = "main", "second"
INTERVAL = 0.25  # seconds between two words about a download
PATIENCE = 5.0  # seconds that answers have to come to their end when the program ends


@dataclass(frozen=True)
class Need:
    """What a model takes before it is loaded."""

    weights: int  # bytes
    whole: int  # bytes, with what one answer takes beside them
    free: int  # bytes that there are
    missing: int = 0  # bytes that are to be downloaded before; then the others are estimates

    def __str__(self) -> str:
        words = f"needs {'about ' if self.missing else ''}{gigabytes(self.whole)} of memory, {gigabytes(self.free)} are free"
        return f"{words}, {gigabytes(self.missing)} to download" if self.missing else words


class Shelf:
    """Loads and lets go, one model at a time."""

    def __init__(self) -> None:
        self._runners: dict[str, Runner] = {}
        self._loading = threading.Lock()

    def get(self, place: str = MAIN) -> Runner:
        """The model at a place. Raises OptionError where there is none, BusyError where it is about to come."""
        runner = self._runners.get(place)
        if runner is None and self._loading.locked():
            raise BusyError("the model is being loaded; ask again when it is there")
        if runner is None:
            raise OptionError(f"no {'second ' if place == SECOND else ''}model is loaded; load one first")
        return runner

    def find(self, place: str = MAIN) -> Runner | None:
        """The model at a place, if there is one."""
        return self._runners.get(place)

    def load(self, spec: ModelSpec, place: str = MAIN) -> Iterator[str]:
        """Put a model in a place, telling how far it is; the one that was there is let go.

        Where memory for both is there, the old one answers until the new one is loaded; else it goes before, and comes back
        where the new one cannot be loaded.

        Raises:
            BusyError: another one is being loaded.
            TooLargeError: it does not fit, even in the old one's place, which stays.
            CheckpointError, BackendError, OptionError: it cannot be loaded.
        """
        with self._alone():
            yield from self._load(spec, place)

    def unload(self, place: str) -> None:
        """Let go of a model, if there is one, when its answers have come to their end. Raises BusyError while one is loaded."""
        with self._alone():
            runner = self._runners.pop(place, None)
            if runner is not None:
                runner.close()

    def close(self) -> None:
        """Let go of all models, without waiting long for answers."""
        for place in list(self._runners):
            self._runners.pop(place).close(PATIENCE)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._loading.acquire(blocking=False):
            raise BusyError("another model is being loaded; wait until it is there")
        try:
            yield
        finally:
            self._loading.release()

    def _load(self, spec: ModelSpec, place: str) -> Iterator[str]:
        old = self._runners.get(place)
        need = yield from self._measured(spec, old.bytes if old else 0)
        loading = f"{spec.short_name}: loading {gigabytes(need.weights)}"
        if old is not None and need.whole > need.free:
            yield f"{loading}, {old.spec.short_name} goes first"
            self._load_instead(spec, need.weights, place)
        else:
            yield loading
            self._runners[place] = load_runner(spec, need.weights)
            if old is not None:
                old.close()
        yield f"{spec.short_name}: ready"

    def _load_instead(self, spec: ModelSpec, size: int, place: str) -> None:
        """Where only one of the two fits."""
        old = self._runners.pop(place)
        old.close()
        try:
            self._runners[place] = load_runner(spec, size)
        except BaseException:
            self._runners[place] = load_runner(old.spec, old.bytes)
            raise

    def _measured(self, spec: ModelSpec, spare: int) -> Generator[str, None, Need]:
        """What it needs; while it is downloaded, how far that is. `spare`: bytes that can be had beside the free ones."""
        yield f"{spec.short_name}: looking for it"
        need = needed(spec)
        yield f"{spec.short_name}: {need}"
        _check(spec, need, spare)
        if need.missing:
            need = yield from self._downloaded(spec)
            yield f"{spec.short_name}: {need}"
            _check(spec, need, spare)
        return need

    def _downloaded(self, spec: ModelSpec) -> Generator[str, None, Need]:
        told = _Download()
        found = _in_background(lambda: _exactly_needed(spec, told))
        while not found.done():
            wait([found], timeout=INTERVAL)
            if told.total:
                yield f"{spec.short_name}: {told}"
        return found.result()


@dataclass
class _Download:
    """How far a download is."""

    done: int = 0  # bytes
    total: int = 0

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def __str__(self) -> str:
        return f"downloading, {gigabytes(self.done)} of {gigabytes(self.total)} ({self.done / self.total:.0%})"


def _in_background(work: Callable[[], Need]) -> Future[Need]:
    """What it gives, from a thread that nobody has to wait for: neither who asks no more, nor the end of the program."""
    found: Future[Need] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever asked
            found.set_exception(error)

    threading.Thread(target=run, name="download", daemon=True).start()
    return found


def needed(spec: ModelSpec) -> Need:
    """What a model would take, from its files' headers; where it is not here yet, from what the Hub says of it.

    Raises:
        CheckpointError: it cannot be found or read.
        OptionError: the dtype is unknown.
    """
    open_backend(spec.backend)  # what is not installed is said before a download
    found = preview(spec.name, spec.revision)
    if found is None:
        return _exactly_needed(spec)
    stored = None if spec.dtype else found.weights
    backend = open_backend(spec.backend)
    weights, whole = model_bytes(found.config, check_dtype(spec.dtype or HALF), backend.row, stored)
    return Need(weights, whole, backend.free_bytes(), found.missing)


def _exactly_needed(spec: ModelSpec, tell: Tell | None = None) -> Need:
    """A Hub id is downloaded for this, and `tell` hears how far it is."""
    return _need(read_checkpoint(find_folder(spec.name, spec.revision, tell)), spec)


def _check(spec: ModelSpec, need: Need, spare: int) -> None:
    """Raises TooLargeError for what does not fit."""
    if need.whole > need.free + spare:
        raise TooLargeError(f"{spec.short_name} {need}; choose a smaller model, another dtype, or free some memory")


def _need(checkpoint: Checkpoint, spec: ModelSpec) -> Need:
    dtype = spec.dtype or ("float32" if spec.name is None else checkpoint.dtype)
    packed = checkpoint.weight_bytes(dtype) if checkpoint.packings and spec.backend == "mlx" else None
    backend = open_backend(spec.backend)
    weights, whole = model_bytes(checkpoint.config, check_dtype(dtype), backend.row, packed)
    return Need(weights, whole, backend.free_bytes())
