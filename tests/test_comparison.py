"""The comparison with other implementations: same inputs or none, runs in turn, verdicts that a restless machine cannot have."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package

from comparison import processes
from comparison.arm import Job, hashes
from comparison.case import Case
from comparison.measured import CaseResult, measure_case
from comparison.processes import OURS, ArmError, Place, Running, running
from comparison.random_checkpoint import config_json, config_of, write_checkpoint
from comparison.requirements import Outcome, Verdict, judge

from mlx_paligemma.benchmark.requests import random_inputs
from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.config import PaliGemmaConfig

TINY, SMALL = Case("tiny", 28, "float32"), Case("small-pg1", 224, "float32")
HERE = Place(Path("no-environments"), None, 1, 0.0)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return measure_case(TINY, ["torch_ref"], HERE, tmp_path_factory.mktemp("case"), pairs=5, tokens=6, prompt_tokens=5)


def runs(first, decode, peak, count=6):
    keys = ("time_to_first_token_s", "decode_s", "first_token_cpu_s", "decode_cpu_s", "peak_memory_bytes", "process_peak_bytes")
    return [dict(zip(keys, (first, decode, first, decode, peak, peak), strict=True)) | {"token_ids": [1, 2]}] * count


def result(ours, theirs, case=SMALL):
    return CaseResult(case, {}, {OURS: ours, "mlx-vlm": theirs}, 2, 17)


def test_processes_of_two_frameworks_read_the_same_and_say_the_same(measured):
    assert measured.loaded[OURS]["hashes"] == measured.loaded["torch_ref"]["hashes"]
    assert measured.same_tokens("torch_ref") == 6
    assert [len(found) for found in measured.runs.values()] == [5, 5]
    assert all(run["time_to_first_token_s"] > 0 and run["decode_s"] > 0 for found in measured.runs.values() for run in found)


def test_every_run_is_in_the_result_and_it_is_json(measured):
    data = json.loads(json.dumps(measured.as_dict()))
    assert data["case"] == "tiny:28:float32"
    assert len(data["arms"]["torch_ref"]["runs"]) == 5
    assert {"value", "low", "high", "pairs", "drift", "steady"} <= set(data["against"]["torch_ref"]["decode_s"])
    assert "peak_memory_bytes" not in data["against"]["torch_ref"]  # torch does not count it on a CPU


def test_an_arm_that_has_read_something_else_ends_the_comparison(tmp_path, monkeypatch):
    @contextmanager
    def started(name, *_):
        yield Running(name, None, tmp_path, {"hashes": {"ids": "theirs" if name == "torch_ref" else "ours"}})

    monkeypatch.setattr(processes, "_started", started)
    with pytest.raises(ArmError, match="torch_ref has read other"), running([OURS, "torch_ref"], None, HERE, tmp_path):
        pass


def test_hashes_tell_one_bit_of_weights_pixels_and_ids(tmp_path):
    checkpoint, inputs = TINY.write(tmp_path, 5)
    job = Job(OURS, str(checkpoint), str(inputs), "float32")
    before = hashes(job)
    asked = random_inputs(TINY.config, 5)
    asked.pixel_values[0, 0, 0, 0, 0] += 1e-6
    np.savez(inputs, ids=asked.input_ids, pixels=asked.pixel_values)
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    after = hashes(job)
    assert {name for name in before if before[name] != after[name]} == {"pixels", "weights"}


def test_an_arm_that_cannot_start_says_why(tmp_path):
    job = Job(OURS, str(tmp_path / "nothing"), str(tmp_path / "nothing.npz"), "float32")
    with pytest.raises(ArmError, match=r"torch_ref has stopped: .*nothing"), running(["torch_ref"], job, HERE, tmp_path):
        pass


@pytest.mark.parametrize("size", ["small-pg1", "small-pg2", "pg2-3b", "tiny"])
def test_the_written_config_is_the_one_that_was_asked_for(size):
    config = config_of(size, 448)
    read = PaliGemmaConfig.from_dict(config_json(config, "float32"))
    assert (read.text, read.vision, read.image_token_index) == (config.text, config.vision, config.image_token_index)


def test_the_written_checkpoint_is_complete_in_its_dtype(tmp_path):
    write_checkpoint(tmp_path, config_of("tiny", 28), "bfloat16")
    assert read_checkpoint(tmp_path).dtype == "bfloat16"


@pytest.mark.parametrize("text", ["small-pg1", "small-pg1:225:float32", "huge:224:float32", "small-pg1:224:float32:1:1"])
def test_a_case_that_is_none_is_refused(text):
    with pytest.raises(typer.BadParameter, match="SIZE:PIXELS:DTYPE"):
        Case.parse(text)


def test_a_case_has_rows_where_they_are_asked_for():
    assert Case.parse("pg2-3b:448:bfloat16:8") == Case("pg2-3b", 448, "bfloat16", 8)


def test_requirements_are_met_or_missed_by_the_medians():
    verdicts = judge([result(runs(1.0, 1.0, 700), runs(2.6, 1.04, 1000))], {})
    assert [verdict.outcome for verdict in verdicts] == [Outcome.met, Outcome.missed, Outcome.met]


def test_a_machine_that_does_not_hold_still_refuses_a_verdict():
    restless = runs(1.0, 1.0, 700, 3) + runs(1.1, 1.0, 700, 3)
    first, decode, _ = judge([result(restless, runs(9.0, 9.0, 1000))], {})
    assert first.outcome == Outcome.refused
    assert decode.outcome == Outcome.met


def test_memory_has_its_own_limit_at_each_resolution():
    larger = Case("small-pg1", 448, "float32")
    assert judge([result(runs(1.0, 1.0, 600), runs(9.0, 9.0, 1000), larger)], {})[2].outcome == Outcome.missed
    assert judge([result(runs(1.0, 1.0, 600), runs(9.0, 9.0, 1000))], {})[2].outcome == Outcome.met


def test_nothing_is_required_of_bfloat16():
    assert not judge([result(runs(1.0, 1.0, 1), runs(1.0, 1.0, 1), Case("small-pg1", 224, "bfloat16"))], {})


def test_host_and_start_up_times_are_judged_too():
    extra = {"host": {"pg1-3b": {"as_on_a_gpu": {"ratio": 0.6}}}, "start_up": {"help_s": 0.2, "import_s": 0.06}}
    assert [verdict.outcome for verdict in judge([], extra)] == [Outcome.missed, Outcome.met, Outcome.missed]


def test_a_limit_itself_is_met():
    assert Verdict("x", 2.5, 2.5, at_least=True).outcome == Verdict("x", 0.5, 0.5, at_least=False).outcome == Outcome.met
