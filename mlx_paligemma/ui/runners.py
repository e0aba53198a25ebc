"""Loaded models that answer, one class for each backend. MLX decodes all that is asked together, PyTorch one after another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import Any, Protocol

from PIL import Image

from ..backends import open_backend
from ..common.decoding import Generation, Request, Step
from ..common.errors import BusyError
from ..common.feature_cache import FeatureCache
from ..common.processor import PaliGemmaProcessor
from ..common.sampling import SamplingOptions
from .model_spec import ModelSpec
from .stop import Stop

MAX_ROWS = 8  # answers that are made together
MAX_WAITING = 64
POLL = 0.1  # seconds


class Runner(Protocol):
    """A loaded model. All methods may be called from any thread."""

    spec: ModelSpec
    dtype: str  # that it computes in
    features: FeatureCache  # a picture is encoded once for all questions about it
    bytes: int  # of its weights

    def answering(
        self, picture: Image.Image, prompt: str, options: SamplingOptions, stop: Stop
    ) -> AbstractContextManager[Generation]:
        """While it is entered, an answer that the caller drives; leaving frees its place, and `stop` ends its steps.

        Raises:
            BusyError: it is being closed, or too many wait.
            ImageError, PromptError, OptionError, TooLargeError, NumericError: there can be no answer.
        """

    def close(self) -> None:
        """Let answers that run come to their end, and let go of the model."""


def load_runner(spec: ModelSpec, size: int) -> Runner:
    """Load a model of `size` bytes. Raises what loading raises (see weights.load), and BackendError."""
    return _MlxRunner(spec, size) if spec.backend == "mlx" else _TorchRunner(spec, size)


class _MlxRunner:
    def __init__(self, spec: ModelSpec, size: int):
        from ..serve.engine import Engine

        found: list[PaliGemmaProcessor] = []

        def load() -> Any:
            network, processor = open_backend("mlx").load(spec.name, dtype=spec.dtype, revision=spec.revision)
            found.append(processor)
            self.dtype = str(network.language_model.norm.weight.dtype).removeprefix("mlx.core.")
            return network

        self.spec, self.bytes, self.features = spec, size, FeatureCache()
        self._engine = Engine(load, MAX_ROWS, MAX_WAITING, self.features)
        decode = found[0].decode_masks
        masks = None if decode is None else lambda codes: self._engine.call(decode, codes)
        self._processor = PaliGemmaProcessor(found[0].config, found[0].tokenizer, masks)

    @contextmanager
    def answering(self, picture: Image.Image, prompt: str, options: SamplingOptions, stop: Stop) -> Iterator[Generation]:
        import mlx.core as mx

        with _closing_rows(self._engine.steps, stop) as steps:
            yield Generation(steps, mx.get_peak_memory, self._processor, [picture], [prompt], options)

    def close(self) -> None:
        import mlx.core as mx

        self._engine.close()
        self.features.clear()
        mx.clear_cache()


class _TorchRunner:
    def __init__(self, spec: ModelSpec, size: int):
        self.spec, self.bytes, self.features = spec, size, FeatureCache()
        self._backend = open_backend("torch")
        self._loaded: tuple[Any, Any] | None = self._backend.load(spec.name, dtype=spec.dtype, revision=spec.revision)
        self.dtype = str(self._loaded[0].language_model.norm.weight.dtype).removeprefix("torch.")
        self._turn = threading.Lock()  # not re-entrant: steps of one answer may come from several threads

    @contextmanager
    def answering(self, picture: Image.Image, prompt: str, options: SamplingOptions, stop: Stop) -> Iterator[Generation]:
        with _turn(self._turn, stop):
            if self._loaded is None:
                raise BusyError("this model is being let go; ask again")
            yield self._backend.start(*self._loaded, [picture], [prompt], features=self.features, **asdict(options))

    def close(self) -> None:
        with self._turn:
            self._loaded = None
        self.features.clear()
        self._backend.free()


@contextmanager
def _turn(turn: threading.Lock, stop: Stop) -> Iterator[None]:
    """Wait for a turn. Raises BusyError where it is to stop before."""
    while not turn.acquire(timeout=POLL):
        if stop.is_requested:
            raise BusyError("stopped before its turn came")
    try:
        yield
    finally:
        turn.release()


@contextmanager
def _closing_rows(steps: Any, stop: Stop) -> Iterator[Any]:
    """The same function; what it gave is closed at the end, or when it is to stop, also where it still waits for a place."""
    given: list[Any] = []

    def remembering(request: Request) -> Iterator[Step]:
        given.append(steps(request))
        stop.then(given[-1].close)
        return given[-1]

    try:
        yield remembering
    finally:
        for rows in given:
            rows.close()
