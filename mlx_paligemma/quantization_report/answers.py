"""Answers of a model, kept as tokens: they are compared, and given to other models word for word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..common.feature_cache import FeatureCache
from ..common.image import ImageSource
from ..common.processor import PaliGemmaProcessor
from ..common.results import GenerationResult
from ..generation import start
from ..model.paligemma import PaliGemma

KEPT_BYTES = 256 * 2**20  # of encoded pictures, each of which has several prompts


@dataclass(frozen=True)
class Answer:
    """What a model wrote, and the size in pixels of the picture it is about."""

    text: str
    token_ids: tuple[int, ...]  # with eos, where the model ended
    width: int
    height: int


@dataclass(frozen=True)
class Batch:
    """Prompts that were answered together, `prompts[b]` about `pictures[b]`."""

    pictures: tuple[ImageSource, ...]
    prompts: tuple[str, ...]
    answers: tuple[Answer, ...]


@dataclass
class Asker:
    """A model that is asked: gives its greedy answers, and keeps them."""

    model: PaliGemma
    processor: PaliGemmaProcessor
    max_tokens: int
    tell: Callable[[str], None]
    batches: list[Batch] = field(default_factory=list)
    features: FeatureCache = field(default_factory=lambda: FeatureCache(KEPT_BYTES))

    def __call__(self, pictures: Sequence[ImageSource], prompts: Sequence[str]) -> list[GenerationResult]:
        """The answers of one batch."""
        asked = start(self.model, self.processor, list(pictures), list(prompts), features=self.features, max_tokens=self.max_tokens)
        results = asked.run()
        answers = tuple(self._kept(result) for result in results)
        self.batches.append(Batch(tuple(pictures), tuple(prompts), answers))
        self.tell(f"{sum(len(batch.prompts) for batch in self.batches):,} answers")
        return results

    def _kept(self, result: GenerationResult) -> Answer:
        end = [self.processor.config.eos_token_id] if result.finish_reason == "stop" else []
        return Answer(result.text, (*result.token_ids, *end), result.detections.width, result.detections.height)
