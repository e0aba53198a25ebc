"""A whole comparison in two halves: the reference runs and is recorded on disk, then it goes and MLX takes its place.

So the weights of one side alone are in memory, and those of a 3B model in float32 fit into 24 GB.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx

from ..backends import open_backend
from ..common.checkpoint import Checkpoint, check_dtype, read_checkpoint
from ..common.hub import find_folder
from ..common.mask_codec import FILE_NAME
from ..common.processor import PaliGemmaProcessor
from ..common.tokenizer import PaliGemmaTokenizer
from ..fusion import fuse
from ..weights import load_mask_codec
from . import budgets
from .call import DECODED, Call
from .call_store import CallStore
from .end_to_end import run_decoding, run_end_to_end
from .greedy import GreedyRun, compare_greedy
from .input_check import InputCheck
from .origin import Against, Question, check_same_model, describe
from .replay import Replayer
from .report import ModuleParity, ParityReport
from .scenes import build_scenes

Tell = Callable[[str, int, int | None], None]  # what is done now, how much of it, of how much


def compare_backends(question: Question, tell: Tell = lambda stage, done, total: None) -> ParityReport:
    """Compare MLX with a reference. Interrupted (KeyboardInterrupt), the report says so and holds what there was.

    Raises:
        BackendError: a backend is not installed, or is a version with known faults.
        CheckpointError: a checkpoint cannot be used, or the two are not the same model.
        NumericError: the reference ran out of memory.
        OptionError, PromptError: the dtype, the device or the prompt cannot be used.
    """
    return Comparison(question, tell).run()


class Comparison:
    """One run. `report` grows while it lasts."""

    def __init__(self, question: Question, tell: Tell):
        self.question, self.tell, self._start = question, tell, time.perf_counter()
        self.checkpoint = read_checkpoint(find_folder(question.model, question.revision))
        self.other = self.checkpoint if question.reference is None else read_checkpoint(find_folder(question.reference))
        check_same_model(self.checkpoint, self.other)
        self.dtype = check_dtype(question.dtype or ("float32" if question.model is None else self.checkpoint.dtype))
        self.processor = PaliGemmaProcessor(self.checkpoint.config, PaliGemmaTokenizer.from_folder(self.checkpoint.folder))
        self.scenes = build_scenes(self.processor, question.images, question.prompt, question.padded)
        devices = {"mlx": str(mx.default_device()), question.against.value: question.device}
        self.report = ParityReport(describe(question, self.checkpoint, self.other, self.dtype, devices))
        positions = self.scenes.batch.input_ids.shape[1] + max(question.max_tokens, self.scenes.decoded.shape[1])
        self._size = budgets.Size(self.checkpoint.config.text.hidden_size, positions)
        self._found: dict[str, ModuleParity] = {}

    def run(self) -> ParityReport:
        """Both halves."""
        try:
            inputs = InputCheck(self.checkpoint.folder, self.checkpoint.config).compare(self.scenes.batch, self.scenes.rows)
            self._note(inputs)
            with CallStore.temporary() as store:
                answer = self._run_reference(store)
                gc.collect()
                self._run_mlx(store, answer)
        except KeyboardInterrupt:
            self.report = replace(self.report, interrupted=True)
        modules = tuple(self._found.values())
        return replace(self.report, modules=modules, seconds=time.perf_counter() - self._start)

    def _run_reference(self, store: CallStore) -> GreedyRun:
        """Record the reference. It is gone when this returns."""
        self.tell("loading the reference", 0, None)
        reference = open_reference(self.question.against, self.other, self.question.device)
        reference.record(self.scenes, _Telling(store, self.tell))
        self.tell("the reference answers", 0, None)
        answer: GreedyRun = reference.greedy(self.scenes.single, self.question.max_tokens)
        return answer

    def _run_mlx(self, store: CallStore, answer: GreedyRun) -> None:
        self.tell("loading MLX", 0, None)
        backend = open_backend("mlx")
        model, _ = backend.load(self.checkpoint.path, dtype=self.dtype, fused=False)
        self._compare_modules(store, model)
        self.tell("MLX from the pixels", 0, None)
        drift, logits = run_end_to_end(model, self.scenes.batch, store, self.dtype)
        self.report = replace(self.report, drift=drift, logits=logits)
        self.report = replace(self.report, decoding=run_decoding(model, self.scenes, store, self.dtype))
        self.tell("MLX answers", 0, None)
        model = fuse(model)  # as users run it
        question = self.question

        def generate() -> Any:
            options = {"max_tokens": question.max_tokens, "grammar": False}
            return backend.start(model, self.processor, [list(question.images)], [question.prompt], **options).run()[0]

        tie = budgets.tie(self.dtype, self._size, answer.largest, logits.distance.max_abs_error)
        self.report = replace(self.report, greedy=compare_greedy(answer, generate, tie))

    def _compare_modules(self, store: CallStore, model: Any) -> None:
        path = self.checkpoint.folder / FILE_NAME
        replayer = Replayer.of(model, load_mask_codec(path) if path.exists() else None, self._size.positions)
        for done, call in enumerate(store):
            self.tell("modules", done, len(store))
            if call.name != DECODED and (call.name != "lm_head" or hasattr(model, "lm_head")):
                for found in replayer.compare(call):
                    self._note(found)

    def _note(self, found: ModuleParity) -> None:
        self._found[found.name] = worse(self._found.get(found.name), found)
        if found.fails and self.report.blamed is None:
            self.report = replace(self.report, blamed=found.name)


def worse(one: ModuleParity | None, other: ModuleParity) -> ModuleParity:
    """The one with the larger error; the first of two that are equal."""
    return other if one is None or other.severity > one.severity else one


def worst_of_each(found: list[ModuleParity]) -> list[ModuleParity]:
    """The worst call of each module, in the order of their first calls."""
    kept: dict[str, ModuleParity] = {}
    for module in found:
        kept[module.name] = worse(kept.get(module.name), module)
    return list(kept.values())


def open_reference(against: Against, checkpoint: Checkpoint, device: str) -> Any:
    """The other side, loaded. Raises BackendError when it is not installed, or has known faults."""
    open_backend("torch")  # says what to install
    if against is Against.transformers:
        from .transformers_reference import TransformersReference

        return TransformersReference(checkpoint, device)
    from .torch_reference import TorchReference

    return TorchReference(checkpoint, device)


class _Telling:
    """A store that says how many calls it has."""

    def __init__(self, store: CallStore, tell: Tell):
        self.store, self.tell = store, tell

    def append(self, call: Call) -> None:
        self.store.append(call)
        self.tell("the reference runs", len(self.store), None)
