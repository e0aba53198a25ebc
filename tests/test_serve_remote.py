"""Pictures from addresses that strangers name: nothing but public https, the address that was checked, within size and time."""

import asyncio
import ipaddress
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from serving import SHAPES, chat, refused, serving

from mlx_paligemma.common.errors import ImageError
from mlx_paligemma.serve.remote import Fetcher, is_public, resolve

HOST = "pictures.example"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers["host"]))
        getattr(self, f"do_{self.path.strip('/').split('/')[0].split('?')[0]}")()

    def do_picture(self):
        self.answer(200, SHAPES)

    def do_to(self):
        self.answer(302, b"", location=self.path.removeprefix("/to/"))

    def do_loop(self):
        self.answer(302, b"", location="/loop")

    def do_error(self):
        self.answer(500, b"an inner secret")

    def do_large(self):
        self.answer(200, b"", length=10**9)

    def do_endless(self):
        self.answer(200, b"", length=None)
        while True:
            self.wfile.write(bytes(2**16))

    def do_cut(self):
        self.answer(200, b"half", length=100)

    def do_drip(self):
        self.answer(200, b"", length=1000)
        for _ in range(1000):
            self.wfile.write(b"a")
            time.sleep(0.1)

    def answer(self, status, body, length=0, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Of our own, for HOST."""
    folder = tmp_path_factory.mktemp("tls")
    key, made = folder / "key.pem", folder / "made.pem"
    names = ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(made), *names]
    subprocess.run(new, check=True, capture_output=True)
    return made, key


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


@pytest.fixture(scope="module")
def site(certificate):
    server = Quiet(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetcher(site, certificate):
    """One that takes this machine's loopback for the public net, and knows one name on it."""
    site.asked = []
    here = ipaddress.ip_address("127.0.0.1")

    def names(host, port):
        return [here] if host == HOST else resolve(host, port)

    context = ssl.create_default_context(cafile=certificate[0])
    return Fetcher(100_000, 1.0, names, lambda address: address == here or is_public(address), context)


def get(fetcher, site, path, host=HOST):
    return asyncio.run(fetcher.fetch(f"https://{host}:{site.server_port}{path}"))


def test_a_public_picture_is_fetched_under_its_name(fetcher, site):
    assert get(fetcher, site, "/picture?a=1") == SHAPES
    assert site.asked == [("/picture?a=1", f"{HOST}:{site.server_port}")]


def test_redirects_are_followed_but_not_for_ever(fetcher, site):
    assert get(fetcher, site, "/to//picture") == SHAPES
    with pytest.raises(ImageError, match="more than 3 times"):
        get(fetcher, site, "/loop")


@pytest.mark.parametrize(
    "target",
    [
        "https://169.254.169.254/latest/meta-data/", "https://10.0.0.1/", "https://[::1]/", "https://[::ffff:10.0.0.1]/",
        "https://192.168.1.1/", "https://[fd00:ec2::254]/", "https://0.0.0.0/", "https://2130706434/", "https://0x7f.2/",
    ],
)  # fmt: skip
def test_redirects_to_what_is_not_public_end_there(fetcher, site, target):
    with pytest.raises(ImageError, match="not a public one"):
        get(fetcher, site, f"/to/{target}")


@pytest.mark.parametrize(
    "target", ["http://pictures.example/", "file:///etc/passwd", "ftp://pictures.example/", "https://a:b@pictures.example/"]
)
def test_redirects_to_what_is_not_plain_https_end_there(fetcher, site, target):
    with pytest.raises(ImageError, match="not a plain https"):
        get(fetcher, site, f"/to/{target}")


@pytest.mark.parametrize(
    ("path", "words"),
    [("/error", "answers with an error"), ("/large", "more than 100000"), ("/endless", "more than 100000"), ("/cut", "cut off")],
)
def test_what_is_no_whole_picture_is_refused_without_telling_what_it_is(fetcher, site, path, words):
    with pytest.raises(ImageError, match=words) as caught:
        get(fetcher, site, path)
    assert "secret" not in str(caught.value) and HOST not in str(caught.value)


def test_a_server_that_sends_a_byte_now_and_then_does_not_get_more_time(fetcher, site):
    started = time.monotonic()
    with pytest.raises(ImageError):
        get(fetcher, site, "/drip")
    assert time.monotonic() - started < 1.8  # before `fetch` gives the thread up


def test_a_server_that_says_nothing_does_not_get_more_time(fetcher):
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ImageError):
        asyncio.run(fetcher.fetch(f"https://{HOST}:{silent.getsockname()[1]}/"))


def test_a_certificate_of_another_name_is_refused(fetcher, site):
    with pytest.raises(ImageError, match="cannot be fetched"):
        get(fetcher, site, "/picture", host="127.0.0.1")


def test_a_name_with_one_private_address_is_refused(site, certificate):
    both = [ipaddress.ip_address("93.184.215.14"), ipaddress.ip_address("10.0.0.1")]
    with pytest.raises(ImageError, match="not a public one"):
        get(Fetcher(1000, 1.0, lambda *_: both), site, "/picture")


def test_the_name_is_resolved_once_for_check_and_connection(fetcher, site):
    asked = []
    names = fetcher.resolve

    def counting(host, port):
        asked.append(host)
        return names(host, port)

    once = Fetcher(fetcher.max_bytes, 1.0, counting, fetcher.allows, fetcher.context)
    assert get(once, site, "/picture") == SHAPES
    assert asked == [HOST]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.1.2.3", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1",
        "fec0::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "2002:a00:1::1", "2001:0:7f00:1::", "2001:db8::1",
    ],
)  # fmt: skip
def test_what_only_this_machine_or_its_network_reaches_is_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:2800:21f::1", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_what_everybody_reaches_is_public(address):
    assert is_public(ipaddress.ip_address(address))


def test_a_server_that_may_fetch_refuses_its_own_machine():
    with serving(allow_remote_images=True, remote_timeout=2) as server:
        for url in ("https://127.0.0.1/a.png", "https://localhost/a.png", "https://[::1]/a.png", "https://169.254.169.254/"):
            refused(chat(server, "caption en", url), 400, "not a public one")
        for url in ("http://8.8.8.8/a.png", "https:///a.png", "https://a b/"):
            refused(chat(server, "caption en", url), 400)
