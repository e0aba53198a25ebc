"""Questions to answers: threads that read pictures and make text, bridged to the event loop. The engine's thread does all MLX work.

A question that waits takes no thread; one whose asker has gone leaves at once, or between two tokens.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import mlx.core as mx

from ..common.decoding import Generation, Request, Step
from ..common.errors import BusyError, PaliGemmaError
from ..common.processor import PaliGemmaProcessor
from ..common.results import Chunk, GenerationResult
from ..common.sampling import SamplingOptions
from ..common.token_pieces import TokenPieces
from .engine import Engine
from .logprobs import HeldLogprobs, TokenLogprob
from .metrics import Metrics
from .pictures import decode_picture
from .row_steps import RowSteps
from .stops import StopStrings

READERS = 2  # threads that read the next pictures while all rows are taken


@dataclass(frozen=True)
class Question:
    """What one answer is asked for."""

    pictures: tuple[bytes, ...]  # whole files
    prompt: str
    options: SamplingOptions
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Token:
    """One token of an answer, and the text that is certain with it."""

    text: str
    token_id: int
    logprobs: tuple[TokenLogprob, ...] = ()  # of the tokens whose text this is, where asked for; the end of an answer has none


@dataclass(frozen=True)
class Answer:
    """The end of an answer."""

    rest: str  # text after that of the tokens
    finish_reason: str
    result: GenerationResult
    logprobs: tuple[TokenLogprob, ...] = ()  # of the tokens of the rest


class Answers:
    """Answers questions, `max_rows` at a time; the others wait in their order."""

    def __init__(self, engine: Engine, processor: PaliGemmaProcessor, metrics: Metrics, max_rows: int, max_pixels: int):
        decode = processor.decode_masks
        masks = None if decode is None else lambda codes: engine.call(decode, codes)
        self.processor = PaliGemmaProcessor(processor.config, processor.tokenizer, masks)
        self._engine, self._metrics, self._max_pixels = engine, metrics, max_pixels
        self._threads = ThreadPoolExecutor(max_rows + READERS, thread_name_prefix="answer")
        self._count = 0  # questions that are open
        self._is_closing = False
        metrics.gauges({
            "decoding": ("Answers that are made now.", lambda: engine.decoding),
            "waiting": ("Answers that wait for a place.", lambda: self.waiting),
            "memory_bytes": ("Memory that MLX uses now.", mx.get_active_memory),  # counters need no stream
            "peak_memory_bytes": ("Most memory that MLX has used.", mx.get_peak_memory),
        })  # fmt: skip

    @property
    def waiting(self) -> int:
        """Questions that have no place yet."""
        return max(self._count - self._engine.decoding, 0)

    @cached_property
    def _pieces(self) -> TokenPieces:
        """Read when somebody first asks for log-probabilities."""
        return TokenPieces(self.processor.tokenizer)

    async def ask(self, question: Question) -> AsyncGenerator[Token | Answer, None]:
        """The tokens of an answer as they come, then its end. Close it (`aclosing`) where you leave early.

        Raises:
            BusyError: the server is closing.
            ImageError, PromptError, TooLargeError, NumericError: the question cannot be answered.
        """
        if self._is_closing:
            raise BusyError("the server is closing")
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Token | Answer | Exception]()
        job = _Job(question, lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        future = self._threads.submit(self._run, job)
        self._count += 1
        event: Token | Answer | Exception | None = None
        try:
            while not isinstance(event, Answer):
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self._count -= 1
            job.cancelled.set()
            job.close()
            future.cancel()
            if not isinstance(event, (Answer, Exception)):
                self._metrics.cancelled()

    def close(self) -> None:
        """Finish what runs, then let go of the model."""
        self._is_closing = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._engine.close()

    def _run(self, job: _Job) -> None:
        with suppress(RuntimeError):  # the event loop has gone, and nobody waits any more
            try:
                event = self._answer(job)
                if event is not None:
                    job.tell(event)
            except Exception as error:
                if not isinstance(error, PaliGemmaError):  # a stream has only its client to tell it to
                    logging.getLogger(__name__).exception("an answer failed")
                job.tell(error)
            finally:
                job.close()

    def _answer(self, job: _Job) -> Answer | None:
        """None where nobody waits for it any more."""
        question = job.question
        names = [f"picture {number}" for number in range(1, len(question.pictures) + 1)]
        pictures = [decode_picture(data, name, self._max_pixels) for data, name in zip(question.pictures, names, strict=True)]
        if job.cancelled.is_set():
            return None
        steps = job.watching(self._engine.steps)
        generation = Generation(steps, mx.get_peak_memory, self.processor, [pictures], [question.prompt], question.options)
        stops = self._follow(job, generation)
        if stops is None:
            return None
        job.close()
        result = generation.results()[0]
        stats = result.stats
        self._metrics.answer(stats.prompt_tokens, stats.generation_tokens, job.first_token, time.monotonic() - job.asked)
        reason = "stop" if stops.found else result.finish_reason
        return Answer(stops.finish(), reason, result, job.logprobs.finish(stops.found))

    def _follow(self, job: _Job, generation: Generation) -> StopStrings | None:
        stops = StopStrings(job.question.stops)
        for chunks in generation:
            if job.cancelled.is_set():
                return None
            chunk = chunks[0]
            assert chunk is not None
            job.logprobs.add(chunk.text, self._logprob(job, chunk))
            job.took(stops.add(chunk.text), chunk.token_id)
            if stops.found:
                break
        return stops

    def _logprob(self, job: _Job, chunk: Chunk) -> TokenLogprob | None:
        """Of the newest token. None where none is asked for, and for the end, which is no token of the text."""
        if not job.question.options.token_logprobs or chunk.token_id == self.processor.config.eos_token_id:
            return None
        assert job.step is not None
        return TokenLogprob.of(job.step, self._pieces)


@dataclass(eq=False)
class _Job:
    """A question on its way through a thread."""

    question: Question
    tell: Callable[[Token | Answer | Exception], object]
    cancelled: threading.Event = field(default_factory=threading.Event)
    asked: float = field(default_factory=time.monotonic)
    first_token: float | None = None  # seconds
    logprobs: HeldLogprobs = field(default_factory=HeldLogprobs)
    step: Step | None = None  # the newest
    _steps: RowSteps | None = None

    def watching(self, steps: Callable[[Request], RowSteps]) -> Callable[[Request], Iterator[Step]]:
        """The same steps, which this one can look at and close."""

        def watched(request: Request) -> Iterator[Step]:
            self._steps = steps(request)
            return map(self._seen, self._steps)

        return watched

    def took(self, text: str, token_id: int) -> None:
        """A token has become text."""
        if self.first_token is None:
            self.first_token = time.monotonic() - self.asked
        self.tell(Token(text, token_id, self.logprobs.release(text)))

    def close(self) -> None:
        """Free its place in the engine."""
        if self._steps is not None:
            self._steps.close()

    def _seen(self, step: Step) -> Step:
        self.step = step
        return step
