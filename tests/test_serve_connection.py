"""Clients that take what they asked for slowly or not at all, and the end of a server."""

import socket
import threading
import time

import httpx
import pytest
from serving import LONG, chat, chat_body, serving, slowed, until


@pytest.fixture(scope="module")
def server():
    with serving(idle_timeout=1.0) as made:
        yield made


def connected(server) -> socket.socket:
    host, port = server.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


def open_connections(server) -> int:
    return len(server._server.server_state.connections)


def test_a_client_that_never_reads_is_let_go_and_others_are_served(server):
    with connected(server) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        started, sent = time.monotonic(), 0
        while time.monotonic() - started < 0.5:
            try:
                sent += deaf.send(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            except BlockingIOError:
                time.sleep(0.01)
        assert chat(server, max_tokens=1).status_code == 200
        until(lambda: open_connections(server) == 0, seconds=5)


def test_a_connection_without_a_request_ends(server):
    with connected(server) as silent:
        until(lambda: open_connections(server) == 1, seconds=1)
        silent.settimeout(3)
        assert silent.recv(1) == b""


def test_a_connection_serves_one_request_after_the_other_with_pauses(server):
    with httpx.Client() as client:
        for _ in range(3):
            assert client.get(f"{server.address}/health").json()["status"] == "ok"
            time.sleep(0.4)
        assert open_connections(server) == 1


def test_what_is_written_is_sent_at_once_and_waits_for_no_acknowledgement(server):
    with httpx.Client() as client:
        client.get(f"{server.address}/health")
        (connection,) = server._server.server_state.connections
        assert connection.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_long_answer_outlasts_the_timers(server):
    body, started = chat_body(LONG, stream=True), time.monotonic()
    with slowed(server), httpx.stream("POST", f"{server.address}/v1/chat/completions", json=body, timeout=60) as stream:
        lines = list(stream.iter_lines())
    assert time.monotonic() - started > 1.2
    assert lines[-2] == "data: [DONE]"
    assert not any('"error"' in line for line in lines)


def test_the_end_of_a_server_finishes_what_runs_and_takes_nothing_new():
    ends: list[str] = []
    with serving() as server:

        def run() -> None:
            ends.append(chat(server, LONG).json()["choices"][0]["finish_reason"])

        running = threading.Thread(target=run)
        with slowed(server):
            running.start()
            until(lambda: server.engine.decoding == 1)
            server.stop()
            until(lambda: not can_connect(server), seconds=5)
            assert not ends
            running.join()
    assert ends[0] in ("stop", "length")
    assert not server.engine._thread.is_alive()


def can_connect(server) -> bool:
    try:
        with connected(server):
            return True
    except OSError:
        return False
