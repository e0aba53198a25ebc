"""A conversation whose answers are known: no model, but a real feature cache, and generations that end as told."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mlx_paligemma.cli.conversation import Conversation, View
from mlx_paligemma.common.errors import NumericError, PromptError
from mlx_paligemma.common.feature_cache import FeatureCache
from mlx_paligemma.common.results import Chunk, Detection, Detections, GenerationResult, Stats

BOX = (10.0, 20.0, 60.0, 40.0)


class FakeModel:
    """Answers a prompt with its own words. "stop ..." is interrupted after the first word, "break ..." fails there."""

    def __init__(self):
        self.features = FeatureCache()
        self.asked: list[tuple[Image.Image, str]] = []

    def start(self, picture, prompt):
        if not prompt:
            raise PromptError("the prompt is\nempty")
        self.asked.append((picture, prompt))
        return FakeGeneration(self, picture, prompt)


class FakeGeneration:
    def __init__(self, model, picture, prompt):
        self.model, self.picture, self.prompt = model, picture, prompt
        self.text, self.reason = "", "cancelled"

    def __iter__(self) -> Iterator[list[Chunk | None]]:
        key = self.picture.tobytes()
        if self.model.features.get(self.model, key) is None:
            self.model.features.put(self.model, key, "rows", 4)
        words = self.prompt.split()
        for number, word in enumerate(words):
            piece = word if number == 0 else f" {word}"
            self.text += piece
            yield [Chunk(piece, number)]
            if words[0] == "stop":
                raise KeyboardInterrupt
            if words[0] == "break":
                raise NumericError("the scores are not finite")
        self.reason = "stop"

    def results(self):
        mask = np.zeros((self.picture.height, self.picture.width), dtype=bool)
        mask[20:40, 10:60] = True
        items = (Detection("cat", BOX, 0.5, mask),) if self.prompt == "segment cat" else ()
        found = Detections(items, *self.picture.size)
        notes = ("a note",) if "note" in self.prompt else ()
        return [GenerationResult(self.text, [1, 2], self.reason, Stats(68, 2, 0.25, 40.0, 10**6), found, notes=notes)]


def picture_file(folder: Path, name: str = "picture.png", color: str = "gray") -> Path:
    path = folder / name
    Image.new("RGB", (100, 50), color).save(path)
    return path


def conversation(path: Path | None) -> tuple[Conversation, FakeModel]:
    model = FakeModel()
    return Conversation(model.start, model.features, None if path is None else View.of(str(path))), model
