"""One thread that owns the model and decodes all requests together; requests come and go at any step.

A request is a `common.decoding.Generation` in the thread of whoever asks: it reads the picture and makes text of the steps that
`Engine.steps` gives. MLX's streams belong to threads (0.31.2 and later), so all of its work is done in the engine's own.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import mlx.core as mx
import numpy as np

from ..common.decoding import Request, Step
from ..common.errors import BusyError
from ..common.feature_cache import FeatureCache
from ..decode_step import capacity_for
from ..fusion import FusedPaliGemma
from ..generation import image_rows
from ..memory import check_batch, resident_weights
from ..model.kv_cache import KVCache
from ..next_token import TokenChooser
from .row_steps import RowSteps, choose_all
from .shared_rows import SharedRows


class Engine:
    """Decodes up to `max_rows` requests together; `max_waiting` more may wait for a place."""

    def __init__(
        self,
        model: Callable[[], FusedPaliGemma],
        max_rows: int = 8,
        max_waiting: int = 64,
        features: FeatureCache | None = None,
    ):
        """`model` is loaded in the engine's thread; what it raises is raised here. `features` None: a cache of its own."""
        self._max_rows, self._max_waiting = max_rows, max_waiting
        self._features = FeatureCache() if features is None else features
        self._inbox: queue.SimpleQueue[RowSteps | Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: list[RowSteps] = []
        self._rows: list[RowSteps] = []
        self._open, self._lock = 0, threading.Lock()
        self._is_closing = self._is_draining = self._has_ended = False  # no new requests; the last are finished; no more work
        loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(model, loaded), name="engine", daemon=True)
        self._thread.start()
        loaded.result()

    @property
    def decoding(self) -> int:
        """Requests that decode now."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return self._open - len(self._rows)

    def steps(self, request: Request) -> RowSteps:
        """The steps of a request for one prompt; closing them cancels it.

        Raises:
            BusyError: too many wait already, or the engine is closing.
            TooLargeError, and what else the model raises: with the first step.
        """
        with self._lock:
            if self._is_closing or self._open >= self._max_rows + self._max_waiting:
                raise BusyError("the server is closing" if self._is_closing else f"{self._open} requests are open; ask again later")
            self._open += 1
            row = RowSteps(request)
            self._inbox.put(row)
        return row

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function gives that needs MLX, run between two steps. Raises BusyError when the engine has ended."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function(*args))
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                future.set_exception(error)

        with self._lock:
            if self._has_ended:
                raise BusyError("the server is closing")
            self._inbox.put(run)
        return future.result()

    def close(self) -> None:
        """Take no more requests, finish those that are open, and let go of the model."""
        with self._lock:
            self._is_closing = True
        self._inbox.put(None)
        self._thread.join()

    def _run(self, model: Callable[[], FusedPaliGemma], loaded: Future[None]) -> None:
        try:
            self._model = model()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever made the engine
            loaded.set_exception(error)
            return
        self._shared = SharedRows(self._model.step)
        loaded.set_result(None)
        with resident_weights():
            while self._take_mail():
                self._admit()
                if self._rows:
                    self._step()
        del self._model, self._shared
        mx.clear_streams()  # else the process, if it ends at once, is aborted by MLX: this thread's workers still run

    def _take_mail(self) -> bool:
        """Read what has come, waiting for it where there is nothing else to do. False at the end."""
        while not self._inbox.empty() or not (self._rows or self._waiting):
            if self._is_draining and self._is_empty():
                return False
            mail = self._inbox.get()
            if isinstance(mail, RowSteps):
                self._waiting.append(mail)
            elif mail is not None:
                mail()
            else:
                self._is_draining = True
        self._forget_cancelled()
        return True

    def _is_empty(self) -> bool:
        """Whether nothing is left to do, after which nothing is taken any more."""
        with self._lock:
            self._has_ended = self._open == 0 and self._inbox.empty()
            return self._has_ended

    def _forget_cancelled(self) -> None:
        gone = [row for row in self._waiting if row.is_cancelled]
        self._waiting = [row for row in self._waiting if not row.is_cancelled]
        for row in gone:
            self._end(row)

    def _admit(self) -> None:
        """Let one request in between two steps, so that those that run are not held up for long."""
        if self._waiting and len(self._rows) < self._max_rows:
            row = self._waiting.pop(0)
            try:
                self._begin(row)
            except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
                self._end(row, error)

    def _begin(self, row: RowSteps) -> None:
        request, model = row.request, self._model
        check_batch(model, request.inputs, request.options.max_tokens)
        length = request.inputs.input_ids.shape[1]
        cache = KVCache(model.config.text, 1, capacity_for(length), model.language_model.norm.weight.dtype)
        rows = image_rows(model, request.inputs, self._features)
        row.choose = TokenChooser(request)
        row.chosen = row.choose(model.prefill(mx.array(request.inputs.input_ids), rows, cache))
        mx.async_eval(*row.chosen)
        self._shared.add(cache, request.options.max_tokens)
        self._rows.append(row)

    def _step(self) -> None:
        """Launch the next step of all rows, then read the last one, and let go of rows that have ended."""
        following = self._launch()
        kept = []
        for place, (row, chosen) in enumerate(zip(self._rows, following, strict=True)):
            if row.is_cancelled or not self._goes_on(row):
                self._end(row)
            else:
                row.chosen = chosen
                kept.append(place)
        if len(kept) < len(self._rows):
            self._rows = [self._rows[place] for place in kept]
            self._shared.keep(kept)

    def _launch(self) -> list[tuple[mx.array, ...]]:
        if all(row.is_last for row in self._rows):
            return [() for _ in self._rows]
        logits = self._shared(mx.concatenate([mx.maximum(row.chosen[0], 0) for row in self._rows]))
        following = choose_all(self._rows, logits)
        mx.async_eval(following)
        return following

    def _goes_on(self, row: RowSteps) -> bool:
        """Send the newest step; whether another follows."""
        last = row.is_last
        step = Step(*(np.array(part).tolist() for part in row.chosen))
        row.read += 1
        row.steps.put(step)
        return not last and step.token_ids[0] not in (-1, self._model.config.eos_token_id)

    def _end(self, row: RowSteps, error: Exception | None = None) -> None:
        with self._lock:
            self._open -= 1
        row.steps.put(error)
