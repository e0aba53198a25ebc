"""The load benchmark finds a server right under load, its queue bounded, and would say so if it were not."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import serve_load
from serving import serving
from serving_load.clients import Load, Tally, ask_all
from serving_load.questions import single_runs
from serving_load.server import Figures, resident_bytes, started

QUICK = Load(clients=12, seconds=3, seed=1)


@pytest.fixture(scope="module")
def questions():
    return single_runs(6, seed=1)


def test_clients_at_once_get_the_answers_of_single_runs_and_the_queue_stays_in_its_bounds(questions):
    with started(batch_size=4, max_waiting=4) as server:
        tally, figures = asyncio.run(serve_load._measured(server, questions, QUICK))
        data = serve_load.summary(tally, figures, QUICK) | {"bound": 8}
    assert (data["wrong"], data["errors"]) == (0, 0), data
    assert data["right"] > 8
    assert data["refused_429"] > 0  # 12 clients, 8 places
    assert 4 <= data["peak_open"] <= 8
    assert 0 < data["memory_before"] <= data["memory_end"] * 2 < 4_000_000_000
    assert data["time_to_first_token_s_p50"] < data["latency_s_p95"]
    assert not serve_load.is_bad(data)
    assert server.process.returncode == 130  # of Ctrl-C


def test_a_wrong_answer_is_found_and_told(questions):
    other = [type(question)(question.picture, question.prompt, "another answer", question.tokens) for question in questions[:1]]
    with serving() as server:
        tally = asyncio.run(ask_all(server.address, other, Load(clients=2, seconds=0.5, seed=0)))
    assert tally.wrong > 0 == tally.right
    assert tally.as_dict()["differences"][0]["single"] == "another answer"


def test_an_error_of_the_server_is_found_and_told(questions):
    with serving(api_key="secret") as server:
        tally = asyncio.run(ask_all(server.address, questions, Load(clients=2, seconds=0.1, seed=0)))
    assert tally.errors[0].startswith("ValueError: 401")


@pytest.mark.parametrize("fault", [{"wrong": 1}, {"errors": 1}, {"right": 0}, {"peak_open": 9.0}])
def test_each_fault_makes_the_run_a_bad_one(fault):
    fine = {"wrong": 0, "errors": 0, "right": 5, "peak_open": 8.0, "bound": 8}
    assert not serve_load.is_bad(fine)
    assert serve_load.is_bad(fine | fault)


def test_memory_is_that_of_the_process():
    held = bytearray(200_000_000)
    held[::4096] = b"x" * len(held[::4096])
    assert resident_bytes(os.getpid()) > 200_000_000


def test_nothing_answered_gives_no_quantiles():
    figures = Figures(0, "", 1)
    data = serve_load.summary(Tally(seconds=1.0), figures, QUICK)
    assert data["latency_s_p50"] is None
    assert data["requests_per_s"] == 0
