"""The comparison would notice: each planted fault is found, and blamed on the module that has it. Run with -s for the table."""

import numpy as np
import pytest
from PIL import Image

from mlx_paligemma.parity.input_check import InputCheck
from mlx_paligemma.parity.scenes import build_scenes

from .compare import LOGITS_LIMIT, Call, Scenario, compare_each, report
from .planted_faults import faults, input_faults
from .tiny_models import Pair

CASES = [(fault, generation) for fault in faults() for generation in fault.generations]


@pytest.fixture(scope="module")
def recorded(pairs) -> dict[int, list[Call]]:
    """The reference's calls, by generation."""
    return {generation: Scenario.of(pair).calls(pair) for generation, pair in pairs.items()}


@pytest.mark.parametrize(("fault", "generation"), CASES, ids=[f"{fault.name}, {generation}" for fault, generation in CASES])
def test_a_planted_fault_is_found_and_blamed_on_its_module(fault, generation, pairs, recorded, monkeypatch):
    pair: Pair = pairs[generation]
    model = pair.fresh_model()
    fault.plant(monkeypatch, model)
    failing = next((difference for difference in compare_each(recorded[generation], model) if difference.fails), None)
    logits = Scenario.of(pair).logits_error(pair, model)
    found = "nothing" if failing is None else failing.name
    size = 0 if failing is None else failing.relative_error
    report(f"| {generation} | {fault.name} | `{found}` | {size:.1e} | {logits:.1e} | ")
    assert found == fault.blamed
    assert size > 2 * failing.budget and not logits <= LOGITS_LIMIT


@pytest.mark.parametrize("fault", input_faults(), ids=lambda fault: fault.name)
def test_a_fault_of_the_processor_is_found_there(fault, pairs, monkeypatch):
    found = check_inputs(pairs[1])
    assert not found.fails
    fault.plant(monkeypatch, None)
    found = check_inputs(pairs[1])
    report(f"| | {fault.name} | `{found.name}` | {found.relative_error:.1e} | | ")
    assert found.fails and found.name == fault.blamed


def check_inputs(pair: Pair):
    """What the comparison says of two rows of unlike lengths and a picture and its mirror image."""
    picture = Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 50).convert("RGB")
    scenes = build_scenes(pair.processor(), [picture], "detect cat\n")
    assert scenes.batch.padding is not None
    return InputCheck(pair.folder, pair.config).compare(scenes.batch, scenes.rows)


def test_an_unbroken_model_has_nothing_to_blame(pairs, recorded):
    for generation, pair in pairs.items():
        assert not any(difference.fails for difference in compare_each(recorded[generation], pair.fresh_model()))


def test_not_a_number_is_a_failure(pairs, recorded):
    model = pairs[1].fresh_model()
    model.language_model.norm.weight[0] = np.nan
    failing = next(difference for difference in compare_each(recorded[1], model) if difference.fails)
    assert failing.name == "language_model.norm"
