"""A report as one page that needs nothing else: a heat map of modules by metric, a table that sorts, and where it came from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template

from .report import WHOLE, LogitsParity, ModuleParity, ParityReport

METRICS = ("relative error", "share of the budget", "max abs error", "1 - cosine")
FLOOR = 1e-16  # smaller figures are drawn like this one
DECADES = 3  # that the colours of a line tell apart, from its largest figure down
NAMED = 8  # cells of a part of the network that has its name below the heat map


def write_page(report: ParityReport, file: Path) -> None:
    """Write the page. Raises OSError when the file cannot be written."""
    file.write_text(page(report), encoding="utf-8")


def page(report: ParityReport) -> str:
    """The whole page."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    origin = report.origin
    return template.substitute(
        title=escape(f"{origin.model}: MLX {origin.dtype} against {origin.against}"),
        verdict=report.verdict,
        summary="".join(f"<li>{escape(line)}</li>" for line in summary(report)),
        moved=_moved(report),
        heat=_heat_map(report.modules),
        metrics="".join(f'<th data-kind="number">{metric}</th>' for metric in METRICS),
        rows="".join(_row(place, module) for place, module in enumerate(report.modules)),
        drift="".join(_bar(drift.name, drift.relative_error) for drift in report.drift),
        origin="".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in _origin(report)),
    )


def summary(report: ParityReport) -> list[str]:
    """The findings, a line each."""
    lines = [f"{len(report.modules)} modules, {sum(module.fails for module in report.modules)} beyond their budget"]
    if report.first_failure is not None:
        lines.append(f"first failure: {report.first_failure}")
    if report.not_finite is not None:
        lines.append(_not_finite(report.not_finite))
    lines += _logits("logits from the pixels", report.logits) + _logits("logits of decoding", report.decoding) + _greedy(report)
    return [*lines, *(["interrupted: this is the part that was done"] if report.interrupted else [])]


def _logits(what: str, found: LogitsParity | None) -> list[str]:
    if found is None:
        return []
    line = (
        f"{what}, {found.positions} positions: relative error {found.distance.relative_error:.1e} (budget {found.budget:.1e}), "
        f"top-1 agreement {100 * found.top1_agreement:.2f} %, median top-2 gap {found.margin:.3g}"
    )
    if found.largest_gap_flipped is not None:
        line += f"; largest gap where the best token differs: {found.largest_gap_flipped:.2g}"
    return [line]


def _greedy(report: ParityReport) -> list[str]:
    greedy = report.greedy
    if greedy is None:
        return []
    if greedy.problem:
        return [f"greedy: MLX gives no answer: {greedy.problem}"]
    if greedy.first_divergence is None:
        return [f"greedy: the same {len(greedy.tokens)} tokens: {greedy.text}"]
    gap = "unknown" if greedy.gap is None else f"{greedy.gap:.2g}"
    kind = f"a near tie, below {greedy.tie:.2g}" if greedy.near_tie else f"no near tie, which ends at {greedy.tie:.2g}"
    return [f"greedy: tokens part at {greedy.first_divergence}, where the reference's top-2 gap is {gap} ({kind})"]


def _not_finite(module: ModuleParity) -> str:
    name, given = module.name or WHOLE, module.not_finite
    if given is None or given.smallest is None or given.largest is None:
        return f"NaN or infinity first at {name}"
    return (
        f"NaN or infinity first at {name}; its input: {given.smallest:.3g} to {given.largest:.3g}, mean {given.mean:.3g}, "
        f"standard deviation {given.std:.3g}, {given.not_finite} not finite"
    )


def figures(module: ModuleParity) -> tuple[float, float, float, float]:
    """A module's values of METRICS."""
    found = module.distance
    opening = max(1 - found.cosine, 0.0)  # in this order NaN stays NaN
    return found.relative_error, found.relative_error / module.budget, found.max_abs_error, opening


def _heat_map(modules: Iterable[ModuleParity]) -> str:
    """A line of cells per metric, a cell per module; the colour goes with the logarithm over that line's range."""
    modules, lines = list(modules), []
    for place, metric in enumerate(METRICS):
        values = [figures(module)[place] for module in modules]
        shades = _shades(values)
        cells = [
            f'<i class="{_kind(module)}" style="--s:{shade:.2f}" title="{escape(module.name or WHOLE)}: {value:.2e}"></i>'
            for module, value, shade in zip(modules, values, shades, strict=True)
        ]
        lines.append(f'<div class="line"><b>{metric}</b><span>{"".join(cells)}</span></div>')
    return "".join([*lines, _parts(modules)])


def _parts(modules: list[ModuleParity]) -> str:
    """The names of the network's parts, each as wide as its cells."""
    groups = groupby(module.name.partition(".")[0] for module in modules)
    runs = [(name, len(list(cells))) for name, cells in groups]
    names = "".join(f'<u style="flex:{count}">{name if count >= NAMED else ""}</u>' for name, count in runs)
    return f'<div class="line parts"><b></b><span>{names}</span></div>'


def _shades(values: list[float]) -> list[float]:
    """0 to 1, by logarithm; 1 for what is no number."""
    logs = [math.log10(max(value, FLOOR)) if math.isfinite(value) else math.nan for value in values]
    known = [value for value in logs if not math.isnan(value)] or [0.0]
    low = max(known) - DECADES
    return [1.0 if math.isnan(value) else max(0.0, (value - low) / DECADES) for value in logs]


def _kind(module: ModuleParity) -> str:
    if module.not_finite is not None:
        return "nan"
    return "fail" if module.fails else "ok"


def _row(place: int, module: ModuleParity) -> str:
    cells = "".join(f'<td data-value="{_sortable(value)}">{value:.2e}</td>' for value in figures(module))
    shape = " × ".join(map(str, module.shape))
    return (
        f'<tr class="{_kind(module)}"><td data-value="{place}">{place + 1}</td><td>{escape(module.name or WHOLE)}</td>'
        f"<td>{shape}</td><td>{module.dtype}</td>{cells}</tr>"
    )


def _bar(name: str, error: float) -> str:
    width = 100.0 if not math.isfinite(error) else max(1.0, 100 * (1 + math.log10(max(error, 1e-8)) / 8))
    return f'<div class="bar"><span>{escape(name)}</span><em style="width:{width:.1f}%"></em><code>{error:.1e}</code></div>'


def _sortable(value: float) -> str:
    return f"{value:.6e}" if math.isfinite(value) else "9e99"


def _moved(report: ParityReport) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in report.moved)
    return f"<h2>Moved since the stored run</h2><ul>{lines}</ul>" if lines else ""


def _origin(report: ParityReport) -> list[tuple[str, str]]:
    origin = report.origin
    rows = [("model", origin.model), ("reference's checkpoint", origin.reference), ("against", origin.against)]
    rows += [("dtype", origin.dtype), ("prompt", origin.prompt), ("images", ", ".join(origin.images))]
    rows += [(f"version of {name}", value) for name, value in origin.versions.items()]
    rows += [(f"device of {name}", value) for name, value in origin.devices.items()]
    rows += [(f"sha256 of {name}", value) for name, value in origin.hashes.items()]
    return [*rows, ("seconds", f"{report.seconds:.1f}")]
