"""Prompts about a drawn scene and their right answers: what the bundled checkpoint was trained on and is measured by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.locations import format_location
from .scenes import COLORS, KINDS, Scene, Shape

MaskCodes = Callable[[Shape], Sequence[int]]  # the 16 codes of a shape's mask
MULTIPLE = {kind: ("crosses" if kind == "cross" else f"{kind}s") for kind in KINDS}
TASKS = ("caption", "color", "shape", "count", "count kind", "yes/no", "detect", "segment", "ocr")
SHAPE_SCENE_WEIGHTS = (0.16, 0.1, 0.1, 0.08, 0.08, 0.1, 0.2, 0.16, 0.02)
LOCATING_WEIGHTS = (0.16, 0.05, 0.05, 0.08, 0.1, 0.06, 0.34, 0.14, 0.02)  # for the later part of a training
PAIRS = 0.25  # of the questions about places that ask for two kinds at once
NUMBER_SCENE_WEIGHTS = (0.25, 0.03, 0.03, 0.04, 0.02, 0.03, 0.08, 0.02, 0.5)


@dataclass(frozen=True)
class Question:
    """A prompt, its answer, and the shapes that the answer locates (in the answer's order)."""

    task: str
    prefix: str
    suffix: str
    located: tuple[Shape, ...] = ()


def ask(
    scene: Scene,
    rng: np.random.Generator,
    mask_codes: MaskCodes,
    task: str | None = None,
    weights: Sequence[float] = SHAPE_SCENE_WEIGHTS,
    pairs: float = PAIRS,
) -> Question:
    """A random question about the scene, of the task given or of any; `weights` say how often a scene of shapes gets which,
    `pairs` how often a question about places asks for two kinds.
    """
    if task is None:
        weights = NUMBER_SCENE_WEIGHTS if scene.number else weights
        task = str(rng.choice(TASKS, p=weights))
    if task in ("detect", "segment"):
        return _locate(task, scene, rng, mask_codes, pairs)
    return Question(task, *_ASKERS[task](scene, rng))


def caption(scene: Scene) -> str:
    """One sentence that names every shape from left to right, or the number."""
    if scene.number:
        return f"the number {scene.number}"
    names = [f"{'an' if shape.color[0] in 'aeiou' else 'a'} {shape.color} {shape.kind}" for shape in scene.shapes]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _ask_caption(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    return "caption en", caption(scene)


def _ask_color(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    kind = _choose(rng, [shape.kind for shape in scene.shapes], KINDS, unique=True)
    colors = [shape.color for shape in scene.shapes if shape.kind == kind]
    return f"answer en what color is the {kind}?", colors[0] if len(colors) == 1 else ""


def _ask_shape(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    color = _choose(rng, [shape.color for shape in scene.shapes], tuple(COLORS), unique=True)
    kinds = [shape.kind for shape in scene.shapes if shape.color == color]
    return f"answer en what shape is {color}?", kinds[0] if len(kinds) == 1 else ""


def _ask_count(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    return "answer en how many shapes are there?", str(len(scene.shapes))


def _ask_count_kind(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    kind = _choose(rng, [shape.kind for shape in scene.shapes], KINDS)
    return f"answer en how many {MULTIPLE[kind]} are there?", str(sum(shape.kind == kind for shape in scene.shapes))


def _ask_yes_no(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    color, kind = str(rng.choice(tuple(COLORS))), str(rng.choice(KINDS))
    if scene.shapes and rng.random() < 0.8:  # half of all answers are yes, and half of the others are near misses
        shape = scene.shapes[rng.integers(0, len(scene.shapes))]
        draw = rng.random()
        color = shape.color if draw < 0.82 else color
        kind = shape.kind if draw < 0.64 or draw >= 0.82 else kind
    there = any(shape.color == color and shape.kind == kind for shape in scene.shapes)
    return f"answer en is there a {color} {kind}?".replace("a orange", "an orange"), "yes" if there else "no"


def _ask_ocr(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    return "ocr", scene.number


_ASKERS = {
    "caption": _ask_caption,
    "color": _ask_color,
    "shape": _ask_shape,
    "count": _ask_count,
    "count kind": _ask_count_kind,
    "yes/no": _ask_yes_no,
    "ocr": _ask_ocr,
}


def _locate(task: str, scene: Scene, rng: np.random.Generator, mask_codes: MaskCodes, pairs: float) -> Question:
    """`detect star`, `detect red star` or `detect circle ; star`: label by label, from left to right."""
    labels = [_label(scene, rng)]
    if rng.random() < pairs:
        other = _choose(rng, [shape.kind for shape in scene.shapes], KINDS)
        labels = [labels[0].split()[-1], other] if other != labels[0].split()[-1] else labels
    located = [(label, shape) for label in labels for shape in scene.shapes if _fits(label, shape)]
    parts = [format_location(shape.box, label, mask_codes(shape) if task == "segment" else ()) for label, shape in located]
    return Question(task, f"{task} {' ; '.join(labels)}", " ; ".join(parts), tuple(shape for _, shape in located))


def _label(scene: Scene, rng: np.random.Generator) -> str:
    """A kind, or a colour and kind; one in six is not in the picture."""
    if scene.shapes and rng.random() > 1 / 6:
        shape = scene.shapes[rng.integers(0, len(scene.shapes))]
        return shape.kind if rng.random() < 0.5 else f"{shape.color} {shape.kind}"
    kind = _choose(rng, [], KINDS)
    return kind if rng.random() < 0.5 else f"{rng.choice(tuple(COLORS))} {kind}"


def _fits(label: str, shape: Shape) -> bool:
    return label in (shape.kind, f"{shape.color} {shape.kind}")


def _choose(rng: np.random.Generator, present: list[str], every: tuple[str, ...], unique: bool = False) -> str:
    """Mostly one that is present (with `unique`, exactly once), else one that is absent."""
    choices = [item for item in present if not unique or present.count(item) == 1]
    if choices and rng.random() > 1 / 6:
        return choices[rng.integers(0, len(choices))]
    absent = [item for item in every if item not in present]
    return absent[rng.integers(0, len(absent))]
