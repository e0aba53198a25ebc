"""Figures for Prometheus, ids and lines of the log: what happened, and nothing of what was asked."""

import logging

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import chat, data_uri, metric, refused, serving, until


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "mlx_paligemma")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("mlx_paligemma")]


def test_figures_count_what_happened(lines):
    with serving() as server:
        answer = chat(server, "caption en").json()
        chat(server, "caption en", data_uri(b"broken"))
        httpx.get(f"{server.address}/secret-path")
        text = httpx.get(f"{server.address}/metrics").text
        assert metric(server, 'requests_total{path="/v1/chat/completions",status="200"}') == 1
        assert metric(server, 'requests_total{path="/v1/chat/completions",status="400"}') == 1
        assert metric(server, 'requests_total{path="other",status="404"}') == 1
        assert metric(server, 'tokens_total{kind="generated"}') == answer["usage"]["completion_tokens"]
        assert metric(server, 'tokens_total{kind="prompt"}') == answer["usage"]["prompt_tokens"]
        assert metric(server, "time_to_first_token_seconds_count") == 1
        assert metric(server, 'request_seconds_count{path="/v1/chat/completions"}') == 2
        assert metric(server, "memory_bytes") > 1e6
        assert metric(server, "decoding") == metric(server, "waiting") == 0
    assert {"mlx_paligemma_requests", "mlx_paligemma_tokens"} <= {family.name for family in text_string_to_metric_families(text)}
    assert "secret-path" not in text and not any("secret-path" in line for line in lines())


def test_the_log_has_ids_and_no_prompts_unless_they_are_wanted(lines):
    with serving() as server:
        found = chat(server, "answer en a secret?", max_tokens=1)
    assert any(found.headers["x-request-id"] in line and " 200 " in line for line in lines())
    assert not any("secret" in line for line in lines())
    with serving(log_prompts=True) as server:
        found = chat(server, "answer en a secret?\n2020 forged line", max_tokens=1)
    assert f'{found.headers["x-request-id"]} prompt "answer en a secret?\\n2020 forged line"' in lines()


def test_two_servers_do_not_mix_their_figures(lines):
    with serving() as one, serving() as other:
        chat(one, max_tokens=1)
        assert (metric(one, "time_to_first_token_seconds_count"), metric(other, "time_to_first_token_seconds_count")) == (1, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_of_the_server_is_in_its_log_alone(lines, monkeypatch, stream):
    with serving() as server:
        steps = server.engine.steps

        def failing(request):
            for number, step in enumerate(steps(request)):
                if number == 3:
                    raise RuntimeError("/inner/path/model.py is broken")
                yield step

        monkeypatch.setattr(server.engine, "steps", failing)
        found = chat(server, "caption en", stream=stream)
        assert "inner" not in found.text and "Traceback" not in found.text
        if stream:
            assert found.text.endswith("data: [DONE]\n\n") and '"type": "server_error"' in found.text
        else:
            assert refused(found, 500)["type"] == "server_error"
            until(lambda: any(f"{found.headers['x-request-id']} failed" in line for line in lines()))
        assert "an answer failed" in lines()
        monkeypatch.undo()
        assert chat(server, "caption en").status_code == 200
