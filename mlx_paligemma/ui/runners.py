"""Loaded models that answer, one class for each backend. MLX decodes all that is asked together, PyTorch one after another."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
from .visits import Visits

MAX_ROWS = 8  # answers that are made together
MAX_WAITING = 64
POLL = 0.1  # seconds


class Runner(Protocol):
    """A loaded model. All methods may be called from any thread."""

    spec: ModelSpec
    dtype: str  # that it computes in
    features: FeatureCache  # a picture is encoded once for all questions about it
    bytes: int  # of its weights

    def using(self, stop: Stop) -> AbstractContextManager[None]:
        """While it is entered, the model is not let go: for several answers of one model. Raises BusyError after that."""

    def answering(
        self, picture: Image.Image, prompt: str, options: SamplingOptions, stop: Stop
    ) -> AbstractContextManager[Generation]:
        """While it is entered, an answer that the caller drives; leaving frees its place. `stop` ends it while it waits.

        Raises:
            BusyError: the model has been let go, or too many wait.
            ImageError, PromptError, OptionError, TooLargeError, NumericError: there can be no answer.
        """

    def close(self, patience: float | None = None) -> None:
        """Let answers that run come to their end, then let go of the model. Those that take more seconds are stopped."""


def load_runner(spec: ModelSpec, size: int) -> Runner:
    """Load a model of `size` bytes. Raises what loading raises (see weights.load), and BackendError."""
    return _MlxRunner(spec, size) if spec.backend == "mlx" else _TorchRunner(spec, size)


class _MlxRunner:
    def __init__(self, spec: ModelSpec, size: int):
        from ..serve.engine import Engine

        self.spec, self.bytes, self.features = spec, size, FeatureCache()
        found: list[PaliGemmaProcessor] = []

        def load() -> Any:
            network, processor = open_backend("mlx").load(spec.name, dtype=spec.dtype, revision=spec.revision)
            found.append(processor)
            self.dtype = str(network.language_model.norm.weight.dtype).removeprefix("mlx.core.")
            return network

        engine = Engine(load, MAX_ROWS, MAX_WAITING, self.features)
        self._loaded: tuple[Engine, PaliGemmaProcessor] | None = (engine, _decoding_masks(found[0], engine.call))
        self._visits = Visits()

    def using(self, stop: Stop) -> AbstractContextManager[None]:
        return self._visits.visit(stop)

    @contextmanager
    def answering(self, picture: Image.Image, prompt: str, options: SamplingOptions, stop: Stop) -> Iterator[Generation]:
        import mlx.core as mx

        with self._visits.visit(stop):
            engine, processor = _there(self._loaded)
            with _closing_rows(engine.steps, stop) as steps:
                yield Generation(steps, mx.get_peak_memory, processor, [picture], [prompt], options)

    def close(self, patience: float | None = None) -> None:
        import mlx.core as mx

        self._visits.end(patience)
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded[0].close()
        del loaded
        self.features.clear()
        gc.collect()  # a network and its decoding step know each other
        mx.clear_cache()


class _TorchRunner:
    def __init__(self, spec: ModelSpec, size: int):
        self.spec, self.bytes, self.features = spec, size, FeatureCache()
        self._backend = open_backend("torch")
        self._loaded: tuple[Any, Any] | None = self._backend.load(spec.name, dtype=spec.dtype, revision=spec.revision)
        self.dtype = str(self._loaded[0].language_model.norm.weight.dtype).removeprefix("torch.")
        self._visits = Visits()
        self._turn = threading.Lock()  # not re-entrant: steps of one answer may come from several threads

    def using(self, stop: Stop) -> AbstractContextManager[None]:
        return self._visits.visit(stop)

    @contextmanager
    def answering(self, picture: Image.Image, prompt: str, options: SamplingOptions, stop: Stop) -> Iterator[Generation]:
        with self._visits.visit(stop):
            if len(self._visits) > MAX_ROWS + MAX_WAITING:
                raise BusyError(f"{len(self._visits) - 1} requests are open; ask again later")
            network, processor = _there(self._loaded)
            with _turn(self._turn, stop) as has_come:
                if has_come:
                    yield self._backend.start(network, processor, [picture], [prompt], features=self.features, **asdict(options))
                else:
                    yield Generation(lambda _: iter(()), lambda: 0, processor, [picture], [prompt], options)

    def close(self, patience: float | None = None) -> None:
        self._visits.end(patience)
        self._loaded = None
        self.features.clear()
        self._backend.free()


def _decoding_masks(processor: PaliGemmaProcessor, call: Callable[..., Any]) -> PaliGemmaProcessor:
    """The same, which decodes masks where the model is: MLX's streams belong to threads."""
    decode = processor.decode_masks
    masks = None if decode is None else lambda codes: call(decode, codes)
    return PaliGemmaProcessor(processor.config, processor.tokenizer, masks)


def _there(loaded: tuple[Any, PaliGemmaProcessor] | None) -> tuple[Any, PaliGemmaProcessor]:
    """Raises BusyError where it was let go without waiting any longer."""
    if loaded is None:
        raise BusyError("this model has been let go; ask again")
    return loaded


@contextmanager
def _turn(turn: threading.Lock, stop: Stop) -> Iterator[bool]:
    """Wait for a turn, and have it while this is entered; False where it is to stop before."""
    has_come = False
    while not has_come and not stop.is_requested:
        has_come = turn.acquire(timeout=POLL)
    try:
        yield has_come
    finally:
        if has_come:
            turn.release()


@contextmanager
def _closing_rows(steps: Any, stop: Stop) -> Iterator[Any]:
    """The same function; what it gave is closed at the end, or when it is to stop, also where it still waits for a place."""
    with ExitStack() as given:

        def remembering(request: Request) -> Iterator[Step]:
            rows = steps(request)
            given.callback(rows.close)
            given.enter_context(stop.calling(rows.close))
            return rows

        yield remembering
