"""Addresses are fetched within bounds, and every failure is one line that names the address."""

import functools
import http.server
import os
import threading

import numpy as np
import pytest
from pictures import encoded, error_of, picture

from mlx_paligemma.common import download
from mlx_paligemma.common.image import open_image

PNG = encoded(picture("RGB", 200, 100))


class Site(http.server.BaseHTTPRequestHandler):
    """A few addresses, good and bad."""

    stop = threading.Event()

    def do_GET(self):
        redirects = {"/moved": "/cat.png", "/to-ftp": "ftp://127.0.0.1/a.png", "/to-file": f"file://{__file__}", "/loop": "/loop"}
        if self.path in redirects:
            self.answer(302, b"", Location=redirects[self.path])
        elif self.path == "/drip":
            self.answer(200, b"", **{"Content-Length": "1000000"})
            while not self.stop.wait(0.05):
                self.wfile.write(b"x")
        elif self.path == "/stated-too-large":
            self.answer(200, PNG, **{"Content-Length": "10000000"})
        elif self.path == "/cut":
            self.answer(200, PNG[:500], **{"Content-Length": str(len(PNG))})
        else:
            bodies = {"/cat.png": PNG, "/k%C3%B6ln%20x.png?a=b&c=%25": PNG, "/page": b"<html>", "/large": bytes(100_000)}
            self.answer(200 if self.path in bodies else 404, bodies.get(self.path, b"nothing here"))

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args):
        """Tests are quiet."""


@pytest.fixture
def site(monkeypatch):
    """Address of a server on this machine that no proxy stands before."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    stop = threading.Event()
    handler = type("QuietSite", (Site,), {"stop": stop})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        stop.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/cat.png", "/moved", "/köln x.png?a=b&c=%25"])
def test_an_address_is_downloaded(site, path):
    assert np.array_equal(np.asarray(open_image(site + path)), np.asarray(picture("RGB", 200, 100)))
    assert open_image(site.replace("http", "HTTP") + path).size == (200, 100)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/missing", "404"),
        ("/page", "not a picture"),
        ("/cut", "cut short"),
        ("/to-ftp", "unknown url type: ftp"),
        ("/to-file", "not allowed"),
        ("/loop", "302"),
    ],
)
def test_a_bad_address_gives_one_line_that_names_it(site, path, words):
    message = error_of(site + path)
    assert words in message
    assert site + path in message


def test_an_address_is_refused_when_downloads_are_off(site):
    message = error_of(f"{site}/cat.png", allow_download=False)
    assert "switched off" in message
    assert f"{site}/cat.png" in message


@pytest.mark.parametrize("path", ["/large", "/stated-too-large"])
def test_a_download_stops_at_its_size_limit(site, path, monkeypatch):
    monkeypatch.setattr(download, "MAX_DOWNLOAD_BYTES", 99_999)
    assert "larger than 99999 bytes" in error_of(site + path)


def test_a_download_that_drips_stops_at_its_time_limit(site, monkeypatch):
    monkeypatch.setattr(download, "DOWNLOAD_TIMEOUT", 0.3)
    assert "not done after 0.3 s" in error_of(f"{site}/drip")


@pytest.mark.parametrize(
    "address", ["http://", "http://[bad/a", "http://127.0.0.1:port/a", "http://127.0.0.1:1/a\r\nb", "http://\udcff"]
)
def test_an_address_that_leads_nowhere_gives_one_line(address, monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    assert "cannot be downloaded" in error_of(address)
