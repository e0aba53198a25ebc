"""From token ids to answers, for both backends: text as it grows, when a row is done, results and their cost.

A backend contributes one function that yields the next token of every row, step by step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from PIL import Image

from .errors import NumericError
from .grammar import GrammarPlan, plan
from .image import open_image
from .locations import parse_detections, parse_locations
from .mask_codec import FILE_NAME, PUBLISHED_AT
from .processor import ImageRow, ModelInputs, PaliGemmaProcessor, picture_rows
from .results import Chunk, GenerationResult, Likeliest, Stats
from .sampling import SamplingOptions
from .tokenizer import LOC_TOKENS, NUM_LOC, TextStream


@dataclass(frozen=True)
class Step:
    """The next token of each of B rows."""

    token_ids: list[int]  # -1 in a row whose scores are no numbers
    logprobs: list[float]  # before filters and grammar, as the next; 0 where the options do not ask for them
    nearby: list[float]  # of a loc token: the share of the bins around it, itself included, in all bins' probability; of others: 0
    changed: list[bool]  # by the grammar
    cut: list[bool]  # by the grammar, to end before the token budget does
    top_ids: Sequence[list[int]] = ()  # [B, K], the likeliest first; empty where the options do not ask for them, as the next
    top_logprobs: Sequence[list[float]] = ()  # [B, K], before filters and grammar

    def likeliest(self, row: int) -> Likeliest:
        """Of a row; empty where the options do not ask for it."""
        return [*zip(self.top_ids[row], self.top_logprobs[row], strict=True)] if self.top_ids else []


@dataclass(frozen=True)
class Request:
    """What a backend is to generate."""

    inputs: ModelInputs
    options: SamplingOptions
    first_loc: int  # id of <loc0000>
    plan: GrammarPlan | None  # None: no row has a grammar


Steps = Callable[[Request], Iterator[Step]]  # max_tokens steps


@dataclass
class _Row:
    """One answer in the making."""

    stream: TextStream
    pictures: list[Image.Image]
    budget: int  # new tokens at most: max_tokens, or what is left of the context
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[Likeliest] = field(default_factory=list)
    nearby: dict[int, float] = field(default_factory=dict)  # of each loc token, by the characters before it
    characters: int = 0
    grammar_changes: int = 0
    finish_reason: str | None = None


class Generation:
    """A running generation. Iterate over it for the steps; `results` can be asked at any time, also after a stop halfway."""

    def __init__(
        self,
        steps: Steps,
        peak_memory: Callable[[], int],
        processor: PaliGemmaProcessor,
        images: Sequence[ImageRow],
        prompts: Sequence[str],
        options: SamplingOptions,
    ):
        """Read the pictures and prompts. Raises ImageError or PromptError."""
        self._started = time.perf_counter()
        self._peak_memory, self._processor, self._options = peak_memory, processor, options
        pictures = [[open_image(image) for image in row] for row in picture_rows(images)]
        self._inputs = processor(cast(list[ImageRow], pictures), prompts)
        context = processor.config.text.max_position_embeddings
        budgets = [min(options.max_tokens, context - self._prompt_tokens(index)) for index in range(len(pictures))]
        self._rows = [_Row(processor.tokenizer.stream(), row, room) for row, room in zip(pictures, budgets, strict=True)]
        self._times: list[float] = []  # of every step, seconds since the call
        form = plan(processor.grammar, processor.tokenizer, prompts, budgets) if options.grammar else None
        longest = replace(options, max_tokens=max(budgets))
        self._steps = steps(Request(self._inputs, longest, processor.tokenizer.first_loc, form))  # an interrupted run can go on

    def __iter__(self) -> Iterator[list[Chunk | None]]:
        """One list per step: each row's new chunk, None for rows that are done.

        Raises:
            NumericError: the model produced numbers that are not finite.
        """
        while not all(row.finish_reason for row in self._rows):
            step = next(self._steps, None)
            if step is None:  # an error or an interruption has ended it
                return
            self._times.append(time.perf_counter() - self._started)
            yield [self._take(row, index, step) for index, row in enumerate(self._rows)]

    def run(self) -> list[GenerationResult]:
        """Go on to the end, and return the results."""
        for _ in self:
            pass
        return self.results()

    def results(self) -> list[GenerationResult]:
        """The answers as far as they have come; those cut off by the caller have finish_reason "cancelled"."""
        return [self._result(row, index) for index, row in enumerate(self._rows)]

    def _take(self, row: _Row, index: int, step: Step) -> Chunk | None:
        token = step.token_ids[index]
        if row.finish_reason:
            return None
        if token < 0:
            raise NumericError(
                "the model's scores are not finite (NaN or infinite): its weights are damaged, or try --dtype float32"
            )
        row.grammar_changes += step.changed[index]
        if token == self._processor.config.eos_token_id:
            row.finish_reason = "length" if step.cut[index] else "stop"
            return Chunk(row.stream.finish(), token, row.finish_reason)
        text = self._add(row, token, step, index)
        if len(row.token_ids) >= row.budget:
            row.finish_reason = "length"
            text += row.stream.finish()
        return Chunk(text, token, row.finish_reason)

    def _add(self, row: _Row, token: int, step: Step, index: int) -> str:
        """Append a token, and return the text that is certain now."""
        row.token_ids.append(token)
        row.logprobs.append(step.logprobs[index])
        row.top_logprobs.append(step.likeliest(index))
        text = row.stream.add(token)
        row.characters += len(text)
        if 0 <= token - self._processor.tokenizer.first_loc < NUM_LOC:
            row.nearby[row.characters - len(LOC_TOKENS[0])] = step.nearby[index]
        return text

    def _result(self, row: _Row, index: int) -> GenerationResult:
        text = self._processor.tokenizer.decode(row.token_ids)
        width, height = row.pictures[0].size
        found = parse_detections(text, width, height, self._processor.decode_masks, nearby=row.nearby)
        return GenerationResult(
            text,
            [*row.token_ids],
            row.finish_reason or "cancelled",
            self._stats(row, index),
            found.above(self._options.min_score),
            [*row.logprobs] if self._options.token_logprobs else None,
            self._notes(row, text),
            [*row.top_logprobs] if self._options.top_logprobs else None,
        )

    def _notes(self, row: _Row, text: str) -> tuple[str, ...]:
        notes = []
        if row.finish_reason == "length":
            notes.append(f"cut off after {row.budget} tokens, more may have followed; allow more with max_tokens (--max-tokens)")
        if self._processor.decode_masks is None and any(location.codes for location in parse_locations(text)):
            notes.append(f"boxes without masks: the model's folder has no {FILE_NAME}; download {PUBLISHED_AT} into it")
        return tuple(notes)

    def _prompt_tokens(self, index: int) -> int:
        padding = 0 if self._inputs.padding is None else int(self._inputs.padding[index])
        return int(self._inputs.input_ids.shape[1]) - padding

    def _stats(self, row: _Row, index: int) -> Stats:
        after_first = sum(max(len(row.token_ids) - 1, 0) for row in self._rows)
        seconds = self._times[-1] - self._times[0] if self._times else 0.0
        return Stats(
            prompt_tokens=self._prompt_tokens(index),
            generation_tokens=len(row.token_ids),
            time_to_first_token_s=self._times[0] if self._times else None,
            generation_tps=after_first / seconds if after_first and seconds > 0 else None,
            peak_memory_bytes=self._peak_memory(),
            grammar_changes=row.grammar_changes,
        )
