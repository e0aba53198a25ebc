"""How well the bundled checkpoint does on fresh scenes, measured by generation.

Usage: python -m mlx_paligemma.demo.accuracy --scenes 300 --backend mlx
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from ..common.results import Detection, GenerationResult
from .questions import Question, ask
from .scenes import Scene, Shape, draw_scene

SEED = 7_000_000  # no training seed is near
FLOORS = {
    "color": 0.98, "shape": 0.98, "yes/no": 0.97, "count": 0.92, "count kind": 0.92, "caption": 0.85,
    "box found": 0.95, "box IoU": 0.80, "mask IoU": 0.70, "number": 0.85,
}  # fmt: skip
TASKS = ("caption", "color", "shape", "count", "count kind", "yes/no", "detect", "segment")

Answer = Callable[[Sequence[Image.Image], Sequence[str]], list[GenerationResult]]


@dataclass
class Score:
    """Values in 0..1 of one measure."""

    values: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Their average."""
        return float(np.mean(self.values))


def measure(answer: Answer, scenes: int, batch: int = 16, seed: int = SEED) -> dict[str, Score]:
    """Ask every task about `scenes` scenes of shapes, and read as many numbers; boxes and masks count per object of the truth."""
    scores = {name: Score() for name in FLOORS}
    asked = list(_questions(scenes, seed))
    for task in {question.task: None for _, question in asked}:  # answers of one task are of like length
        chosen = [pair for pair in asked if pair[1].task == task]
        for start in range(0, len(chosen), batch):
            part = chosen[start : start + batch]
            results = answer([scene.image for scene, _ in part], [question.prefix for _, question in part])
            for (scene, question), result in zip(part, results, strict=True):
                _judge(scores, scene, question, result)
    return scores


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks, bool [height, width]; two empty ones are equal."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def _questions(scenes: int, seed: int) -> Iterator[tuple[Scene, Question]]:
    for number in range(scenes):
        rng = np.random.default_rng([seed, number])
        scene = draw_scene(rng, number=False)
        for task in TASKS:
            yield scene, ask(scene, rng, lambda shape: (), task)
        written = draw_scene(rng, number=True)
        yield written, ask(written, rng, lambda shape: (), "ocr")


def _judge(scores: dict[str, Score], scene: Scene, question: Question, result: GenerationResult) -> None:
    if question.task not in ("detect", "segment"):
        name = "number" if question.task == "ocr" else question.task
        scores[name].values.append(float(result.text == question.suffix))
        return
    width, height = scene.image.size
    labels = [part.split(">")[-1].strip() for part in question.suffix.split(" ; ")]
    for label, shape in zip(labels, question.located, strict=False):
        box = tuple(value * side for value, side in zip(shape.box, (width, height) * 2, strict=True))
        same = [found for found in result.detections if found.label == label]
        best = max(same, key=lambda found: iou(found.box, box), default=None)
        overlap = 0.0 if best is None else iou(best.box, box)
        scores["box found"].values.append(float(overlap >= 0.5))
        scores["box IoU"].values.append(overlap)
        if question.task == "segment":
            scores["mask IoU"].values.append(_mask_iou(best, shape, width, height))


def _mask_iou(found: Detection | None, shape: Shape, width: int, height: int) -> float:
    return 0.0 if found is None or found.mask is None else mask_iou(found.mask, shape.mask(width, height))


def main(
    scenes: Annotated[int, typer.Option(help="Scenes of shapes, and as many numbers.")] = 300,
    backend: Annotated[str, typer.Option(help="mlx or torch.")] = "mlx",
    model: Annotated[str | None, typer.Option(help="Checkpoint folder. Left out: the bundled demo.")] = None,
) -> None:
    """Print a table: measure, floor, figure, number of answers."""
    from ..backends import open_backend

    opened = open_backend(backend)
    network, processor = opened.load(model, dtype="float32")

    def answer(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[GenerationResult]:
        return opened.start(network, processor, list(pictures), prompts, max_tokens=120).run()

    print(f"{backend}, {scenes} scenes\n{'measure':12} {'floor':>6} {'figure':>7} {'answers':>8}")  # noqa: T201
    for name, score in measure(answer, scenes).items():
        print(f"{name:12} {FLOORS[name]:6.2f} {score.mean:7.3f} {len(score.values):8}")  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
