"""The doctor: it notices what is wrong, says what to do, fails where it matters, and never breaks down itself."""

import json
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from program import program

import torch_ref.gemma
from mlx_paligemma import doctor
from mlx_paligemma.cli import doctor as command
from mlx_paligemma.doctor import hub, machine, on_mlx, speed
from mlx_paligemma.doctor.check import Check, State, checked, ok
from mlx_paligemma.doctor.demo import Answers, demo_probes
from mlx_paligemma.doctor.fits import BITS, SIZES, TIGHT, Verdict, fits, needed_bytes
from mlx_paligemma.doctor.hub import hub_probes
from mlx_paligemma.doctor.machine import machine_probes
from mlx_paligemma.doctor.on_mlx import mlx_probes
from mlx_paligemma.doctor.on_torch import torch_probes
from mlx_paligemma.doctor.operations import operations
from mlx_paligemma.doctor.rounding import LIMITS, judged, relative_error
from mlx_paligemma.doctor.speed import speed_probes

CPU = torch.device("cpu")
OPERATIONS = {operation.name: operation for operation in operations()}


@pytest.fixture
def run(monkeypatch, capfd):
    return program(monkeypatch, capfd)


@pytest.fixture
def online(monkeypatch):
    """The Hub answers, and the user has a token."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    monkeypatch.setattr(HfApi, "model_info", lambda self, repo, **options: None)
    monkeypatch.setattr(HfApi, "auth_check", lambda self, repo: None)


def found(probes) -> dict[str, Check]:
    return {name: checked(name, probe) for name, probe in probes.items()}


def without(monkeypatch, package, *users):
    """As if a package were not installed, for modules that are imported anew."""
    monkeypatch.setitem(sys.modules, package, None)
    for module in [name for name in sys.modules if name.startswith(users)]:
        monkeypatch.delitem(sys.modules, module)


def raising(error):
    def probe(*arguments, **options):
        raise error

    return probe


def test_on_this_machine_everything_that_matters_works(run, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, out, err = run("doctor", "--json")
    report = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert (code, err, report["verdict"]) == (0, "", "ok")
    assert all(list(check) == ["name", "state", "detail", "advice"] and check["detail"] for check in report["checks"])
    states = {check["name"]: check["state"] for check in report["checks"]}
    assert len(states) == len(report["checks"])
    wanted = {"platform", "chip", "memory", "Python", "packages", "mlx", "mlx matmul, bfloat16", "mlx matmul, 4-bit", "mlx memory",
              "torch", "torch on cpu", "torch on cpu, masked attention", "demo on mlx", "demo on torch", "demo compared",
              "speed of mlx", "speed of torch"}  # fmt: skip
    assert wanted <= {name for name, state in states.items() if state in ("ok", "warning")}
    assert states["demo compared"] == "ok" and states["Hub"] == states["Hub token"] == "skipped"
    assert [list(fit) for fit in report["fits"]] == [["model", "precision", "bytes", "fits"]] * len(SIZES) * len(BITS)
    assert report["memory_budget_bytes"] > 0


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warning", 0), ("skipped", 0), ("failed", 1)])
def test_only_what_failed_makes_the_program_fail(run, monkeypatch, state, code):
    monkeypatch.setattr(command, "examine", lambda: iter([ok("fine"), Check("organ", State(state), "found", "do this")]))
    status, out, _ = run("doctor")
    assert status == code
    assert all(word in out for word in ("organ", state, "found", "-> do this", "PaliGemma 2 28B"))
    assert "\x1b" not in out  # no colours where there is no terminal
    assert json.loads(run("doctor", "--json")[1])["verdict"] == ("failed" if code else "ok")


def test_an_interruption_is_one_word_and_exit_130(run, monkeypatch):
    monkeypatch.setattr(command, "examine", raising(KeyboardInterrupt()))
    assert run("doctor") == (130, "", "error: interrupted\n")


def test_what_a_probe_raises_is_a_failed_line_and_the_others_go_on(monkeypatch):
    sections = {
        "whole": raising(OSError("libtorch.so:\ncannot open")),
        "parts": lambda: {"one": raising(RuntimeError("device\nlost")), "other": lambda: ok("fine")},
    }
    monkeypatch.setattr(doctor, "_sections", lambda: sections)
    whole, one, other = doctor.examine()
    assert (whole.name, whole.state, whole.detail) == ("whole", State.failed, "OSError: libtorch.so: cannot open")
    assert (one.name, one.state, one.detail) == ("one", State.failed, "RuntimeError: device lost")
    assert whole.advice and one.advice
    assert (other.name, other.state) == ("other", State.ok)


def test_missing_torch_is_a_warning_with_the_extra_to_install(monkeypatch):
    without(monkeypatch, "torch", "torch_ref")
    checks = found(torch_probes())
    assert list(checks) == ["torch"]
    assert checks["torch"].state is State.warning and "mlx-paligemma[torch]" in checks["torch"].advice
    probes = demo_probes() | speed_probes()
    del probes["speed of mlx"]  # takes its time
    states = {name: check.state for name, check in found(probes).items()}
    assert states.pop("demo on mlx") is State.ok
    assert len(states) == 3 and set(states.values()) == {State.skipped}


def test_missing_mlx_fails(monkeypatch):
    without(monkeypatch, "mlx.core", "mlx_paligemma.weights", "mlx_paligemma.model")
    checks = found(mlx_probes())
    assert list(checks) == ["mlx"]
    assert checks["mlx"].state is State.failed and "pip install 'mlx" in checks["mlx"].advice
    assert found(speed_probes())["speed of mlx"].state is State.skipped


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_operation_that_is_right_passes_and_one_that_is_a_little_off_fails(name, dtype):
    operation = OPERATIONS[name]
    limit = LIMITS[dtype] if operation.limit is None else operation.limit
    off = replace(operation, run=lambda *tensors: operation.run(*tensors).float() * (1 + 2 * limit + 1e-6))
    assert operation.error(CPU, getattr(torch, dtype)) <= limit
    assert off.error(CPU, getattr(torch, dtype)) > limit


def test_attention_that_sees_later_tokens_fails(monkeypatch):
    """As MPS's causal kernel did in half precision."""
    monkeypatch.setattr(torch_ref.gemma, "prefix_lm_mask", lambda start, q, k, *_: torch.ones(1, 1, q, k, dtype=torch.bool))
    check = found(torch_probes())["torch on cpu, masked attention"]
    assert check.state is State.failed and check.advice


def test_a_draw_of_the_impossible_fails(monkeypatch):
    draws = torch.tensor([0] * 1600 + [1] + [2] * 1199 + [3] * 800 + [4] * 400)
    monkeypatch.setattr(torch, "multinomial", lambda *_, **options: draws)
    assert OPERATIONS["multinomial"].error(CPU, torch.float32) > OPERATIONS["multinomial"].limit


def test_torch_that_cannot_start_on_a_device_fails_line_by_line(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "to", raising(RuntimeError("invalid low watermark ratio 1.4")))
    check = found(torch_probes())["torch on cpu, linear"]
    assert (check.state, check.detail) == (State.failed, "RuntimeError: invalid low watermark ratio 1.4")


def test_an_mlx_whose_products_are_wrong_fails(monkeypatch):
    def off(array):
        return np.array(array.astype(mx.float32)) * (1.1 if array.shape == (64, 48) else 1)

    monkeypatch.setattr(on_mlx, "_numpy", off)
    states = {name: check.state for name, check in found(mlx_probes()).items()}
    assert {states.pop("mlx"), states.pop("mlx memory")} == {State.ok}
    assert len(states) == 5 and set(states.values()) == {State.failed}


@pytest.mark.parametrize(
    ("errors", "state"),
    [({"float32": 1e-6, "bfloat16": 1e-2}, "ok"), ({"float32": 5e-4, "bfloat16": 1e-2}, "warning"), ({"float32": 1e-2}, "failed"),
     ({"float32": 1e-6, "bfloat16": 0.1}, "failed"), ({"float32": float("nan")}, "failed"), ({"float16": float("inf")}, "failed")],
)  # fmt: skip
def test_errors_are_judged_by_their_dtype(errors, state):
    assert judged(errors, "mend it", "switch TF32 off").state == state


def test_what_is_not_finite_or_of_another_shape_is_infinitely_wrong():
    assert relative_error([1.0, np.nan], [1.0, 2.0]) == relative_error([1.0], [1.0, 2.0]) == float("inf")
    assert relative_error([1.0, 2.5], [1.0, 2.0]) == 0.25


def test_backends_that_answer_differently_fail():
    answers = Answers()
    assert answers.compare().state is State.skipped
    assert answers.ask("mlx").state is answers.ask("torch").state is State.ok
    assert answers.compare().state is State.ok
    last = answers.of["torch"][1]
    answers.of["torch"][1] = replace(last, token_ids=[*last.token_ids[:-1], 5])
    check = answers.compare()
    assert check.state is State.failed and repr(last.text) in check.detail


def test_a_demo_that_talks_without_end_fails(monkeypatch):
    monkeypatch.setattr("mlx_paligemma.doctor.demo.MAX_TOKENS", 3)
    assert Answers().ask("mlx").state is State.failed


def test_the_hub_is_not_asked_when_offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_reach", raising(AssertionError))
    assert {check.state for check in found(hub_probes()).values()} == {State.skipped}


def test_a_hub_that_answers_and_a_token_that_gives_access_are_ok(online):
    assert {check.state for check in found(hub_probes()).values()} == {State.ok}


def test_a_hub_that_cannot_be_reached_is_a_warning(online, monkeypatch):
    monkeypatch.setattr(HfApi, "model_info", raising(OSError("no route")))
    check = found(hub_probes())["Hub"]
    assert check.state is State.warning and "no route" in check.detail


def test_a_hub_that_never_answers_does_not_hold_the_doctor_up(online, monkeypatch):
    monkeypatch.setattr(hub, "PATIENCE", 0.1)
    monkeypatch.setattr(HfApi, "model_info", lambda self, repo, **options: time.sleep(5))
    started = time.monotonic()
    assert found(hub_probes())["Hub"].state is State.warning
    assert time.monotonic() - started < 3


def refusal(kind, status):
    return kind("refused", response=SimpleNamespace(status_code=status, headers={}, request=None))


@pytest.mark.parametrize(
    ("error", "advice"),
    [(refusal(GatedRepoError, 403), "accept the licence"), (refusal(HfHubHTTPError, 401), "settings/tokens"),
     (refusal(HfHubHTTPError, 503), "check the network")],
)  # fmt: skip
def test_a_token_without_access_says_what_to_do(online, monkeypatch, error, advice):
    monkeypatch.setattr(HfApi, "auth_check", raising(error))
    check = found(hub_probes())["Hub token"]
    assert check.state is State.warning and advice in check.advice


def test_no_token_says_how_to_get_one(online, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    check = found(hub_probes())["Hub token"]
    assert check.state is State.warning and "hf auth login" in check.advice


@pytest.mark.parametrize(
    ("system", "release", "chip", "state"),
    [("Darwin", "15.5", "arm64", "ok"), ("Darwin", "13.6.1", "arm64", "warning"), ("Darwin", "15.5", "x86_64", "failed"),
     ("Linux", "", "x86_64", "ok"), ("Windows", "", "AMD64", "failed")],
)  # fmt: skip
def test_the_platform_is_one_that_mlx_runs_on(monkeypatch, system, release, chip, state):
    monkeypatch.setattr(machine.platform, "system", lambda: system)
    monkeypatch.setattr(machine.platform, "machine", lambda: chip)
    monkeypatch.setattr(machine.platform, "mac_ver", lambda: (release, ("", "", ""), chip))
    check = found(machine_probes())["platform"]
    assert check.state == state
    assert bool(check.advice) == (state != "ok")


def test_little_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(machine, "memory_bytes", lambda: (16_000_000_000, 9_000_000_000))
    assert found(machine_probes())["memory"] == Check("memory", State.ok, "16.0 GB, 9.0 GB of it free")
    monkeypatch.setattr(machine, "memory_bytes", lambda: (4_000_000_000, 4_000_000_000))
    assert found(machine_probes())["memory"].state is State.warning


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(machine, "NEEDED", ("numpy", "no-such-package"))
    check = found(machine_probes())["packages"]
    assert (check.state, check.advice) == (State.failed, "pip install no-such-package")


@pytest.mark.parametrize(
    ("model", "precision", "gigabytes"),
    [("PaliGemma 2 3B", "bfloat16", 6.3), ("PaliGemma 2 3B", "4-bit", 2.6 + 0.3), ("PaliGemma 2 10B", "8-bit", 11.3),
     ("PaliGemma 2 28B", "bfloat16", 56.3), ("PaliGemma 2 28B", "4-bit", 17.1 + 0.6)],  # the embedding table has 8 bits
)  # fmt: skip
def test_what_a_model_needs_is_what_was_derived_for_448_pixels(model, precision, gigabytes):
    assert needed_bytes(model, precision) == pytest.approx(gigabytes * 1e9, rel=0.03)


def test_a_model_fits_is_tight_or_does_not_fit():
    need = needed_bytes("PaliGemma 2 3B", "bfloat16")

    def verdict(budget):
        return next(fit.fits for fit in fits(int(budget)) if (fit.model, fit.precision) == ("PaliGemma 2 3B", "bfloat16"))

    assert verdict(need / TIGHT + 2) is Verdict.yes
    assert verdict(need / TIGHT - 2) is verdict(need) is Verdict.tight
    assert verdict(need - 1) is Verdict.no


def test_a_rate_counts_the_work_of_the_size_that_took_long_enough(monkeypatch):
    times = {256: 0.001, 512: 0.02, 1024: 0.05}
    monkeypatch.setattr(speed, "fastest", lambda multiply: multiply())
    products = speed.Products("float16", 2, *[lambda n: lambda: times[n]] * 2, "hurry")
    check = speed._rates(lambda: products)
    assert check.advice == ""
    assert check.detail == "float16: matrix times matrix 43 GFLOP/s (n = 1024), times vector 0.0 GB/s (n = 1024)"


def test_a_time_is_the_best_of_some_after_a_first_that_does_not_count(monkeypatch):
    clock = iter([0.0, 0.1, 1.0, 1.7, 2.0, 2.5, 3.0, 3.6])
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert speed.fastest(lambda: None) == 0.5


def test_slow_products_come_with_advice(monkeypatch):
    monkeypatch.setattr(speed, "fastest", lambda multiply: 0.1)
    products = speed.Products("float32", 4, *[lambda n: lambda: None] * 2, "hurry")
    assert speed._rates(lambda: products).advice == "hurry"


def test_a_terminal_is_told_on_stderr_how_far_it_has_come(run, monkeypatch):
    monkeypatch.setattr(command, "examine", lambda: iter([Check("organ", State.ok, "found")]))
    assert run("doctor")[2] == ""
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    code, _, err = run("doctor")
    assert code == 0 and "organ: ok" in err
