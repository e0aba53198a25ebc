"""What the stand-in of huggingface.co holds, how it answers, and its storage of large files."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from hub_server import HubServer

LARGE = (".safetensors", ".npz", ".model", ".bin", ".part00", ".part01")  # kept in LFS, whatever their size
Files = dict[str, bytes]


@dataclass
class Repo:
    """Branches with their files."""

    branches: dict[str, Files] = field(default_factory=lambda: {"main": {}})
    gated: bool = False
    private: bool = False

    def files(self, revision: str) -> Files | None:
        by_commit = {commit_of(files): files for files in self.branches.values()}
        return self.branches.get(revision, by_commit.get(revision))


@dataclass
class Request:
    """One request that came in."""

    method: str
    path: str
    range: str | None
    token: str | None
    sent: int = 0  # bytes of a large file


def is_large(path: str) -> bool:
    return path.endswith(LARGE)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def commit_of(files: Files) -> str:
    return hashlib.sha1(repr(sorted((path, sha256(content)) for path, content in files.items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_any(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.url = unquote(urlsplit(self.path).path)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.record = Request(self.command, self.path, self.headers.get("Range"), self.token)
        self.hub.log.append(self.record)
        time.sleep(self.hub.delay)
        if self.hub.status:
            self.fail(self.hub.status, None, "out of order")
        else:
            self.answer()

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def send(self, status: int, content: bytes = b"", **headers: str):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self, value: object, status: int = 200):
        self.send(status, json.dumps(value).encode(), Content_Type="application/json")

    def fail(self, status: int, code: str | None, message: str):
        self.send(status, X_Error_Message=message, **({"X_Error_Code": code} if code else {}))


class StorageHandler(Handler):
    """Large files, by their SHA-256. Knows no tokens: the address is the permission."""

    def answer(self):
        oid = self.url.rsplit("/", 1)[-1]
        if self.command == "PUT":
            self.hub.blobs[oid] = self.body
            return self.send(200)
        content = self.hub.blobs[oid]
        wanted = self.headers.get("Range") if self.hub.ranges else None
        start = int((wanted or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start >= len(content):
            return self.send(416, Content_Range=f"bytes */{len(content)}")
        partial = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if wanted else {}
        self.send_response(206 if partial else 200)
        for name, value in {"Content-Length": str(len(content) - start), **partial}.items():
            self.send_header(name, value)
        self.end_headers()
        return self.stream(content[start:])

    def stream(self, content: bytes):
        cut = self.hub.cuts.pop(0) if self.hub.cuts and len(content) > self.hub.cuts[0].after else None
        end = len(content) if cut is None else cut.after
        try:
            for start in range(0, end, 2**16):
                piece = content[start : min(start + 2**16, end)]
                self.record.sent += len(piece)
                self.wfile.write(piece)
        except OSError:  # the client has gone
            self.close_connection = True
        if cut is not None:
            self.break_off(cut.how)

    def break_off(self, how: str):
        self.wfile.flush()
        self.close_connection = True
        if how == "stall":
            self.rfile.read(1)  # ends when the client goes
        if how == "reset":
            time.sleep(0.2)  # what was sent must be read first: a reset discards it
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # not by the server, which would say that it is the end
