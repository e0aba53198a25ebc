"""`mlx-paligemma ui` as a program: its start, its ends, what it refuses, and that it goes on after hostile requests."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import gettempdir

import httpx
import pytest
from browsing import SHAPES

import mlx_paligemma
from mlx_paligemma.cli import ui as command
from mlx_paligemma.common.errors import BackendError, OptionError

ROOT = Path(mlx_paligemma.__file__).parent.parent
PROGRAM = [sys.executable, "-m", "mlx_paligemma", "ui"]
API = "/gradio_api"
JOIN, UPLOAD = f"{API}/queue/join", f"{API}/upload"
EVENT = {"data": [], "fn_index": 0, "session_hash": "s"}


@contextmanager
def program(*flags, folder=None):
    """The running program and its address. `folder`: where its own temporary folder is made."""
    env = {"PATH": "/usr/bin", "HOME": str(Path.home())} | ({} if folder is None else {"TMPDIR": str(folder)})
    process = subprocess.Popen([*PROGRAM, "--port", "0", *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=env)
    try:
        line = next(line for line in process.stderr if "http://" in line)
        yield process, re.search(r"http://[\w.]+:\d+", line)[0]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of one page for all hostile requests."""
    with program("--max-file-size", "0.1", folder=tmp_path_factory.mktemp("page")) as (_, address):
        yield address


@pytest.fixture(autouse=True)
def goes_on(request):
    """After each request the page is there, and takes questions."""
    yield
    if "page" in request.fixturenames:
        address = request.getfixturevalue("page")
        assert httpx.get(address).status_code == 200
        assert is_answered(address)


def config(address: str) -> dict:
    return httpx.get(f"{address}/config").json()


def asking(address: str) -> int:
    """The number of the event that asks: of the button Ask."""
    parts = {part["id"]: part["props"].get("elem_id") for part in config(address)["components"]}
    events = config(address)["dependencies"]
    return next(event["id"] for event in events if [parts.get(target[0]) for target in event["targets"]] == ["ask"])


def uploaded(address: str, name: str = "shapes.png") -> httpx.Response:
    return httpx.post(address + UPLOAD, files={"files": (name, SHAPES.read_bytes())})


def asked(address: str, path: str) -> list[dict]:
    """What the page is told when it asks for a caption of the picture at a path."""
    picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
    data = [picture, "Caption", "", "en", 64, False, 0.7, 0.95, None, True]
    body = {"data": data, "fn_index": asking(address), "session_hash": "asker"}
    assert httpx.post(address + JOIN, json=body).status_code == 200
    with httpx.stream("GET", f"{address}{API}/queue/data", params={"session_hash": "asker"}, timeout=30) as told:
        return [json.loads(line.removeprefix("data: ")) for line in told.iter_lines() if line]


def is_answered(address: str) -> bool:
    """Whether a question about a picture gets its answer."""
    told = asked(address, uploaded(address).json()[0])
    return "the first after" in json.dumps(told) and all(event.get("success", True) for event in told)


def raw(address: str, *parts: bytes, wait: float = 5) -> bytes:
    """Everything that comes after these bytes, until nothing more does."""
    host, port = address.removeprefix("http://").split(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=wait) as sender:
        try:
            for part in parts:
                sender.sendall(part)
            while part := sender.recv(65536):
                received += part
        except (TimeoutError, ConnectionError):
            pass
    return received


def head(address: str, path: str, *more: str, kind: str = "application/json") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {address.removeprefix('http://')}", f"Content-Type: {kind}", *more]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../../etc/passwd", "pyproject.toml", str(SHAPES), "..%2f..%2fetc%2fpasswd"])
def test_files_of_the_machine_are_not_served(page, path):
    for place in (f"{API}/file=", f"{API}/file/", "/static/", "/assets/", "/svelte/", "/"):
        answer = raw(page, f"GET {place}{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert re.match(rb"HTTP/1.1 40[034]", answer), (place, answer[:200])


def test_a_question_about_a_file_that_was_not_uploaded_is_refused(page):
    for path in ("/etc/passwd", str(SHAPES), "pyproject.toml"):
        told = asked(page, path)
        assert [event["success"] for event in told if event["msg"] == "process_completed"] == [False]


def test_no_address_is_fetched(page):
    hits = []

    class Witness(BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)

    with HTTPServer(("127.0.0.1", 0), Witness) as witness:
        threading.Thread(target=witness.serve_forever, daemon=True).start()
        for host in ("127.0.0.1", "localhost", "169.254.169.254", "huggingface.co"):
            done = next(
                event for event in asked(page, f"http://{host}:{witness.server_port}/a.png") if event["msg"] == "process_completed"
            )
            assert not done["success"] and "not fetched" in done["output"]["error"]
        httpx.get(f"{page}{API}/proxy=http://127.0.0.1:{witness.server_port}/a.png")
        witness.shutdown()
    assert hits == []


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://localhost:3000"}, {"host": "evil.example"},
        {"origin": "http://evil.example", "host": "evil.example"}, {"origin": ""}, {"host": ""}, {"host": "127.0.0.1.evil.example"},
    ],
    ids=str,
)  # fmt: skip
def test_pages_of_other_addresses_may_not_use_this_one(page, headers):
    files = {"files": ("a.png", SHAPES.read_bytes())}
    for answer in (
        httpx.post(page + UPLOAD, files=files, headers=headers),
        httpx.post(page + JOIN, json=EVENT, headers=headers),
        httpx.get(f"{page}/config", headers=headers),
    ):
        assert answer.status_code == 403 and answer.text == "pages of other addresses may not use this one"
    own = {"origin": page}
    assert httpx.post(page + UPLOAD, files=files, headers=own).status_code == 200


def test_a_file_above_the_limit_is_refused(page):
    answer = httpx.post(page + UPLOAD, files={"files": ("big.png", bytes(150_000))})
    assert answer.status_code == 413


def test_ten_gigabytes_are_refused_by_their_length(page):
    for path in (UPLOAD, JOIN, "/login", f"{API}/run/x"):
        assert raw(page, head(page, path, "Content-Length: 10000000000")).startswith(b"HTTP/1.1 413"), path


def test_a_body_without_a_length_is_read_up_to_the_limit(page):
    endless = (b"10000\r\n" + b"a" * 65536 + b"\r\n" for _ in range(2000))
    assert b"200 OK" not in raw(page, head(page, JOIN, "Transfer-Encoding: chunked"), *endless)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000, b'{"data":' * 9000, b'{"data": "\xff\xfe"}', b"", b"{", b"null", b'{"fn_index": 1e400}',
        b'"' + b"a" * 5 * 2**20 + b'"',
        json.dumps(EVENT | {"fn_index": 10**9}).encode(),
        json.dumps(EVENT | {"fn_index": -1}).encode(),
        json.dumps(EVENT | {"data": {"a": 1}}).encode(), json.dumps(EVENT | {"data": [[[]] * 100_000]}).encode(),
    ],
    ids=range(12),
)  # fmt: skip
def test_what_is_no_event_is_refused(page, content):
    answer = httpx.post(page + JOIN, content=content, headers={"content-type": "application/json"}, timeout=20)
    assert answer.status_code != 200 or not answer_of(page)
    assert "Traceback" not in answer.text and str(ROOT) not in answer.text


def answer_of(address: str) -> bool:
    """Whether the event of the visitor `s` succeeded."""
    with httpx.stream("GET", f"{address}{API}/queue/data", params={"session_hash": "s"}, timeout=20) as told:
        return any(json.loads(line[6:]).get("success") for line in told.iter_lines() if line)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/xml", ""])
def test_the_wrong_content_type_is_refused(page, kind):
    for path in (JOIN, UPLOAD):
        answer = httpx.post(page + path, content=b"a=1", headers={"content-type": kind})
        assert 400 <= answer.status_code < 500, (path, answer.status_code)


def test_an_upload_that_is_cut_short_is_no_upload(page):
    kind = "multipart/form-data; boundary=x"
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + SHAPES.read_bytes()[:300]
    assert not raw(page, head(page, UPLOAD, "Content-Length: 9000", kind=kind), part, wait=1).startswith(b"HTTP/1.1 200")
    answer = httpx.post(page + UPLOAD, content=part, headers={"content-type": kind})
    assert answer.status_code in (200, 400)  # its end is missing; what came of it is no picture


def test_a_thousand_uploads_and_names_of_all_kinds_are_taken_as_names(page):
    with httpx.Client() as client:
        for number in range(1000):
            answer = client.post(page + UPLOAD, files={"files": (f"{number}.txt", b"x")})
            assert answer.status_code == 200
    for name in (
        "../../escaped.png",
        "/etc/escaped.png",
        "a\\b\x7f.png",
        "x" * 5000 + ".png",
        "\u202egnp.exe",
        "..",
        "\ud800.png".encode("utf-8", "replace").decode(),
    ):
        answer = uploaded(page, name)
        assert answer.status_code != 200 or "mlx-paligemma-" in answer.json()[0]
    assert not list(ROOT.glob("escaped*")) and not Path("/etc/escaped.png").exists()


def test_a_websocket_is_refused(page):
    upgrade = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    for path in ("/", JOIN):
        request = head(page, path, *upgrade).replace(b"POST", b"GET", 1)
        assert b"101 Switching" not in raw(page, request, wait=1)


def test_what_is_not_http_is_refused(page):
    assert raw(page, b"\x16\x03\x01\x02\x00\x01\r\n\r\n").startswith(b"HTTP/1.1 400")


def line_on_top(address: str) -> str:
    """What a new visitor is told about the loaded model."""
    events = config(address)["dependencies"]
    number = next(event["id"] for event in events if "load" in [target[1] for target in event["targets"]])
    httpx.post(address + JOIN, json={"data": [], "fn_index": number, "session_hash": "top"})
    with httpx.stream("GET", f"{address}{API}/queue/data", params={"session_hash": "top"}, timeout=30) as told:
        return "".join(told.iter_lines())


def test_visitors_who_may_not_swap_find_no_way_to():
    with program("--no-swap") as (_, address):
        labels = {part["props"].get("label") for part in config(address)["components"]}
        assert {"Ask", "Many pictures"} <= labels and not {"Model", "Compare", "Backend", "Revision"} & labels
        assert "load-main" not in json.dumps(config(address))
        with_one_input = [event["id"] for event in config(address)["dependencies"] if len(event["inputs"]) in (1, 4)]
        for number in with_one_input:
            body = {"data": ["torch"], "fn_index": number, "session_hash": f"s{number}"}
            httpx.post(address + JOIN, json=body)
        assert "mlx" in line_on_top(address) and "torch" not in line_on_top(address)


def test_a_password_is_asked_for():
    with program("--auth", "anna:secret") as (_, address):
        for path in ("/config", f"{API}/info", f"{API}/file=/etc/passwd", f"{API}/queue/data"):
            assert httpx.get(address + path).status_code == 401
        assert httpx.post(address + JOIN, json=EVENT).status_code == uploaded(address).status_code == 401
        assert '"auth_required":true' in httpx.get(address).text.replace(" ", "")
        wrong = httpx.post(f"{address}/login", data={"username": "anna", "password": "secre"})
        assert wrong.status_code == 400
        right = httpx.post(f"{address}/login", data={"username": "anna", "password": "secret"})
        assert httpx.get(f"{address}/config", cookies=right.cookies).status_code == 200


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_ends_it_and_takes_its_files_along(tmp_path, number, code):
    before = (Path(gettempdir()) / "gradio").exists()
    with program(folder=tmp_path) as (process, address):
        assert uploaded(address).status_code == 200
        assert list(tmp_path.rglob("shapes.png")) and not (tmp_path / "gradio").exists()
        process.send_signal(number)
        _, rest = process.communicate(timeout=20)
    assert process.returncode in (code, 128 + number)
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == [] and (Path(gettempdir()) / "gradio").exists() == before


def run(*flags, env=None) -> tuple[int, str]:
    done = subprocess.run([*PROGRAM, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--auth", "anna"], 2, "--auth wants a user and a password"),
        (["--host", "192.0.2.7"], 2, "--host 192.0.2.7"), (["--host", "no such host"], 2, "--host no such host"),
        (["--model", "/nowhere/model"], 1, "no such folder"),
    ],
    ids=str,
)  # fmt: skip
def test_what_keeps_it_from_starting_is_one_line(flags, code, words):
    given, err = run("--port", "0", *flags)
    assert given == code and words in err.splitlines()[-1] and "Traceback" not in err
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, err = run("--port", port)
    assert code == 2 and f"--port {port}" in err.splitlines()[-1] and "choose another" in err and "Traceback" not in err


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=re.escape("gradio; install it with: pip install 'mlx-paligemma[ui]'")):
        command._check_extra()


@pytest.mark.parametrize("auth", ["anna", ":", "anna:", ":secret", ""])
def test_a_user_without_a_password_is_refused(auth):
    with pytest.raises(OptionError, match="anna:secret"):
        command._visitor(auth)


def test_a_password_may_have_colons():
    assert command._visitor("anna:a:b") == ("anna", "a:b")


def test_help_names_every_flag_and_imports_nothing_heavy():
    done = subprocess.run([*PROGRAM, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    flags = ("--host", "--port", "--share", "--auth", "--no-swap", "--max-file-size", "--max-megapixels", "--model", "--backend")
    assert all(flag in done.stdout for flag in flags)
    code = "import sys, mlx_paligemma.cli.ui; assert not {'gradio', 'mlx', 'torch'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
