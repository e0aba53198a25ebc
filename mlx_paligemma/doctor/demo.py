"""The demo model, asked on each backend and compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..backends import NAMES, open_backend
from ..common.errors import BackendError
from ..common.results import GenerationResult
from .check import REPORT, Check, Probes, failed, ok, skipped

PICTURE = Path(__file__).parent.parent / "demo" / "shapes.png"
PROMPTS = ("caption en", "detect star")
MAX_TOKENS = 30
DAMAGED = f"install the package again; if that does not help, {REPORT}"
DIFFERENT = "mlx-paligemma parity says where they part; report it with its output"


@dataclass(frozen=True)
class Answers:
    """The answers of each backend that gave some."""

    of: dict[str, list[GenerationResult]] = field(default_factory=dict)

    def ask(self, backend: str) -> Check:
        """Load the demo, ask it, and keep the answers."""
        try:
            opened = open_backend(backend)
        except BackendError:
            return skipped("the backend is not installed")
        network, processor = opened.load()
        found = opened.start(network, processor, [PICTURE] * len(PROMPTS), PROMPTS, max_tokens=MAX_TOKENS).run()
        self.of[backend] = found
        detail = "; ".join(result.text for result in found)
        if not all(result.text and result.finish_reason == "stop" for result in found) or not found[1].detections:
            return failed(f"answers without sense: {detail}", DAMAGED)
        return ok(detail)

    def compare(self) -> Check:
        """Whether the backends answer alike, token by token: they compute the demo in float32."""
        if len(self.of) < len(NAMES):
            return skipped("there are no two backends to compare")
        pairs = list(zip(*self.of.values(), strict=True))
        parted = [f"{one.text!r} and {other.text!r}" for one, other in pairs if one.token_ids != other.token_ids]
        if parted:
            return failed(f"the backends answer differently: {', '.join(parted)}", DIFFERENT)
        return ok(f"{sum(len(one.token_ids) for one, _ in pairs)} tokens, all the same")


def demo_probes() -> Probes:
    """The demo on each backend, and the comparison."""
    answers = Answers()
    asking: Probes = {f"demo on {name}": partial(answers.ask, name) for name in NAMES}
    return asking | {"demo compared": answers.compare}
