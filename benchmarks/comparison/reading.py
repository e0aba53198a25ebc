"""Cases and outcomes of consumers.py: which program reads which folder, and how far what it computes is from ours."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_paligemma.parity.budgets import Size, logits_budget

LIMIT = 1e-5  # of the largest logit, float32


@dataclass(frozen=True)
class Reader:
    """Another program."""

    name: str
    python: str
    script: str
    form: str  # --to


@dataclass(frozen=True)
class Case:
    """A folder to be read."""

    reader: Reader
    generation: str
    recipe: str
    window: int | None = None
    dtype: str = "float32"  # of the floats in the folder
    defect: str | None = None  # the reader's, which explains a difference beyond the prompt


@dataclass(frozen=True)
class Outcome:
    """What came of it. Errors are relative to the largest logit."""

    case: Case
    inputs: bool = False  # whether ids and pixels are ours
    prompt: float = float("inf")
    answer: float = float("inf")
    problem: str = ""
    width: int = 0  # of the text model
    positions: int = 0

    @property
    def limit(self) -> float:
        """In float32 the same numbers, summed in another order; in half precision the parity tool's budget."""
        size = Size(self.width, self.positions)
        return LIMIT if self.case.dtype == "float32" else logits_budget(self.case.dtype, size)

    @property
    def passes(self) -> bool:
        """Whether all is the same, or a known defect of the reader's shows where it must."""
        if self.case.defect is not None:
            return self.inputs and self.prompt < self.limit < self.answer
        return self.inputs and max(self.prompt, self.answer) < self.limit

    def row(self) -> str:
        """Of the table."""
        case = self.case
        said = self.problem or (case.defect if case.defect and self.passes else "")
        name = f"{case.recipe}{f', window {case.window}' if case.window else ''}, {case.dtype}"
        inputs, verdict = "same" if self.inputs else "DIFFER", "yes" if self.passes else "NO"
        figures = f"{inputs} | {self.prompt:.1e} | {self.answer:.1e} | {verdict}"
        return f"| {case.reader.name} | {case.generation} | {name} | {figures} | {said} |"
