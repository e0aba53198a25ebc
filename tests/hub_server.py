"""A stand-in of huggingface.co on this machine, for the real huggingface_hub client: downloads, uploads, and what goes wrong.

Small files are served from the Hub itself; large ones (LFS) by a redirect to a storage server of another origin, as on the Hub.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from hub_handlers import Files, Repo, Request, StorageHandler, is_large, sha256
from hub_pages import HubHandler

PAGE = "/{repo_id}/resolve/{revision}/{filename}"


@dataclass
class Cut:
    """The next file of more bytes than `after` ends there."""

    after: int
    how: str = "reset"  # as by a lost network; "close": as by the server; "stall": nothing more comes


class QuietServer(ThreadingHTTPServer):
    """One that takes it as usual that a client goes before it has its answer."""

    daemon_threads = True

    def handle_error(self, *arguments):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(*arguments)


class HubServer:
    """`with HubServer() as hub:`; `hub.add` puts repositories on it."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.blobs: Files = {}  # large files by SHA-256
        self.rights = {"hf_reader": "read", "hf_writer": "write"}  # what a token may do
        self.log: list[Request] = []
        self.cuts: list[Cut] = []
        self.ranges = True  # whether the storage begins in the middle of a file where it is asked to
        self.status: int | None = None  # what every request is answered with
        self.delay = 0.0  # seconds before each answer

    def __enter__(self) -> HubServer:
        self._stack = ExitStack()
        self.endpoint, self.storage = self._serve(HubHandler), self._serve(StorageHandler)
        return self

    def __exit__(self, *_):
        self.go()

    def go(self):
        """Be out of reach from now on, for connections that are open as well."""
        from huggingface_hub.utils import close_session

        self._stack.close()
        close_session()

    def _serve(self, handler: type[BaseHTTPRequestHandler]) -> str:
        server = QuietServer(("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": self}))
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self._stack.callback(server.server_close)
        self._stack.callback(server.shutdown)
        return f"http://127.0.0.1:{server.server_port}"

    def add(self, name: str, folder: Path | Files, revision: str = "main", **flags: bool) -> Repo:
        """Put the files of a folder on the Hub."""
        repo = self.repos.setdefault(name, Repo(**flags))
        files = folder if isinstance(folder, dict) else {file.name: file.read_bytes() for file in folder.iterdir()}
        repo.branches[revision] = files
        self.blobs |= {sha256(content): content for path, content in files.items() if is_large(path)}
        return repo

    def environment(self, cache: Path, **more: str) -> dict[str, str]:
        """Of a child process that takes this server for the Hub and has an empty home."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        home = {"HF_HOME": str(cache), "HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "PYTHONUNBUFFERED": "1"}
        return kept | home | {"NO_PROXY": "127.0.0.1"} | more

    def take_over(self, monkeypatch, cache: Path, token: str | None = None):
        """Make this process take this server for the Hub, with an empty cache and nobody logged in but `token`."""
        from huggingface_hub import constants

        settings = {"ENDPOINT": self.endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + PAGE, "HF_HUB_CACHE": str(cache),
                    "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_TOKEN_PATH": str(cache / "token")}  # fmt: skip
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)

    def requests(self, part: str, method: str = "GET") -> list[Request]:
        """Those whose path has this part."""
        return [request for request in self.log if part in request.path and request.method == method]

    def sent(self) -> int:
        """Bytes of large files that went out."""
        return sum(request.sent for request in self.log)
