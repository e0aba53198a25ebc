"""All recipes asked the same prompts, one after the other, beside the unquantised model."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..common.checkpoint import Checkpoint, read_checkpoint
from ..common.errors import OptionError
from ..common.hub import find_folder
from ..common.image import open_image
from ..demo.accuracy import measure
from ..quantization import Recipe
from ..weights import load
from .agreement import agreement
from .answers import Asker
from .divergence import mean_divergence
from .quantised import quantise
from .report import Report, Row, Values

UNQUANTISED = "unquantised"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Setup:
    """What is compared, and on what: the demo's held-out scenes, whose right answers are known, or the user's pictures."""

    recipes: Mapping[str, Recipe]
    model: str | None = None  # None: the bundled demo
    pictures: Sequence[str] = ()  # files; none: scenes
    questions: Sequence[str] = ()  # each of them about every picture
    prompts: int = 100  # of each task, about scenes
    dtype: str | None = None  # of the activations; None: as stored, of the demo float32
    revision: str | None = None
    batch: int = 16
    max_tokens: int = 120  # more than any right answer about a scene has

    def __post_init__(self) -> None:
        """Raises OptionError where pictures and prompts do not go together."""
        if bool(self.pictures) != bool(self.questions):
            raise OptionError("--image and --prompt go together; give both, or for the demo model neither")
        if self.model is not None and not self.pictures:
            raise OptionError("the scenes are the demo model's; with --model give pictures and prompts: --image FILE -p PROMPT")


def evaluate(setup: Setup, tell: Tell) -> Report:
    """Compare recipes. Two models are in memory at a time: the unquantised one and another.

    Args:
        setup: what is compared.
        tell: called with a line of progress.

    Raises:
        OptionError: the checkpoint is quantised already.
        ImageError, PromptError: a picture or a prompt cannot be used.
        CheckpointError, TooLargeError: the checkpoint cannot be read, or two models do not fit.
    """
    for picture in setup.pictures:  # all, before hours are spent; none is kept
        open_image(picture, allow_download=False)
    checkpoint = read_checkpoint(find_folder(setup.model, setup.revision))
    if checkpoint.packings:
        raise OptionError(f"{checkpoint.folder} is quantised already, there is nothing to compare with; give the original")
    dtype = setup.dtype or ("float32" if setup.model is None else checkpoint.dtype)
    model, processor = load(checkpoint.path, dtype=dtype)
    asker = Asker(model, processor, setup.max_tokens, _prefixed(UNQUANTISED, tell))
    truth = _ask(setup, asker)
    return Report(
        model=setup.model or "bundled demo",
        dtype=dtype,
        against=UNQUANTISED if truth is None else "truth",
        prompts=sum(len(batch.prompts) for batch in asker.batches),
        unquantised=_unquantised(checkpoint, asker, truth),
        recipes=tuple(_row(setup, name, checkpoint, dtype, asker, truth, tell) for name in setup.recipes),
    )


def _ask(setup: Setup, asker: Asker) -> Values | None:
    """All prompts; the values that right answers make, None where nobody knows them."""
    if not setup.pictures:
        return {name: score.values for name, score in measure(asker, setup.prompts, setup.batch).items()}
    for question in setup.questions:  # answers to one question are of like length
        for start in range(0, len(setup.pictures), setup.batch):
            part = setup.pictures[start : start + setup.batch]
            asker(part, [question] * len(part))
    return None


def _unquantised(checkpoint: Checkpoint, asker: Asker, truth: Values | None) -> Row:
    nbytes = sum(info.nbytes for info in checkpoint.tensors.values())
    values = truth or agreement(asker.batches, asker.batches, asker.processor.decode_masks)
    return Row.of(UNQUANTISED, "as stored", nbytes, 0.0, values, values)


def _row(setup: Setup, name: str, checkpoint: Checkpoint, dtype: str, reference: Asker, truth: Values | None, tell: Tell) -> Row:
    gc.collect()  # the last recipe's model: a fused one refers to itself
    mx.clear_cache()
    recipe, say = setup.recipes[name], _prefixed(name, tell)
    quantised = quantise(checkpoint, recipe, dtype)
    asker = Asker(quantised.model, reference.processor, setup.max_tokens, say)
    values = _ask(setup, asker)
    if values is None:
        values = agreement(reference.batches, asker.batches, asker.processor.decode_masks)
    baseline = truth or {measured: [1.0] * len(found) for measured, found in values.items()}
    divergence = mean_divergence(reference, asker)
    return Row.of(name, recipe.name, quantised.nbytes, divergence, values, baseline)


def _prefixed(name: str, tell: Tell) -> Tell:
    return lambda doing: tell(f"{name}: {doing}")
