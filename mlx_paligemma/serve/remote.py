"""Pictures from https addresses that strangers name, without letting them reach what only this machine can reach (SSRF).

The name is resolved once; every address it has must be a public one; the connection goes to the address that was checked, so
that a name which changes its mind in between gains nothing. Each redirect is checked anew. Source: OWASP, Server-Side Request
Forgery Prevention.
"""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urljoin, urlsplit

from ..common.errors import ImageError

MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
FETCHES = 4  # at a time
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], list[Address]]


class ToAddress(http.client.HTTPSConnection):
    """A connection to one address; the certificate is that of the name."""

    def __init__(self, host: str, port: int, address: Address, timeout: float, context: ssl.SSLContext):
        super().__init__(host, port, timeout=timeout, context=context)
        self._address, self._tls = address, context

    def connect(self) -> None:
        """As the base class does, but to the address that was checked."""
        plain = socket.create_connection((str(self._address), self.port), self.timeout)
        try:
            self.sock = self._wire = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise

    def end(self) -> None:
        """Wake whoever reads from it in another thread. The base class lets go of its socket before the answer is read."""
        with suppress(OSError):  # it has been closed
            socket.socket.shutdown(self._wire, socket.SHUT_RDWR)


def resolve(host: str, port: int) -> list[Address]:
    """All addresses of a name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


def is_public(address: Address) -> bool:
    """Whether anybody can reach it: neither loopback, private, link-local (with the clouds' metadata), multicast nor reserved,
    nor one of these inside an IPv6 address (mapped, 6to4, Teredo, NAT64).
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner: list[Address] = [part for part in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())) if part]
        inner += [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)] if address in NAT64 else []
        if inner or address.is_site_local:
            return bool(inner) and all(map(is_public, inner))
    return address.is_global and not address.is_multicast and not address.is_reserved


@dataclass(frozen=True)
class Fetcher:
    """Fetches pictures of at most `max_bytes`, each within `timeout` seconds, redirects included."""

    max_bytes: int
    timeout: float
    resolve: Resolver = resolve
    allows: Callable[[Address], bool] = is_public
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch"))

    async def fetch(self, address: str) -> bytes:
        """What an address answers. Raises ImageError, which says nothing of what lies behind it."""
        work = asyncio.get_running_loop().run_in_executor(self.threads, self.read, address, time.monotonic() + self.timeout)
        try:
            return await asyncio.wait_for(work, self.timeout + 1)  # a name's resolution cannot be interrupted
        except TimeoutError:
            raise ImageError(f"a picture's address did not answer within {self.timeout:g} s; send the picture itself") from None

    def read(self, address: str, deadline: float) -> bytes:
        """The same, in this thread."""
        for _ in range(MAX_REDIRECTS + 1):
            try:
                answer = self._get(_https_parts(address), deadline)
            except (OSError, http.client.HTTPException, ValueError):
                raise ImageError("a picture's address cannot be fetched; check it, or send the picture itself") from None
            if isinstance(answer, bytes):
                return answer
            address = urljoin(address, answer)
        raise ImageError(f"a picture's address redirects more than {MAX_REDIRECTS} times; send the picture itself")

    def _get(self, parts: SplitResult, deadline: float) -> bytes | str:
        """The body, or where a redirect leads to."""
        host, port = parts.hostname or "", parts.port or 443
        connection = ToAddress(host, port, self._checked(host, port), _left(deadline), self.context)
        with closing(connection), _ended_at(connection, deadline):
            headers = {"User-Agent": "mlx-paligemma", "Accept": "image/*", "Accept-Encoding": "identity"}
            connection.request("GET", f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}", headers=headers)
            response = connection.getresponse()
            if response.status in REDIRECTS and (target := response.headers.get("location")):
                return target
            if response.status != 200:
                raise ImageError("a picture's address answers with an error; check it, or send the picture itself")
            return self._body(response)

    def _checked(self, host: str, port: int) -> Address:
        found = self.resolve(host, port)
        if not found or not all(map(self.allows, found)):
            raise ImageError("a picture's address is not a public one; only those are fetched")
        return found[0]

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        content = bytearray()
        while len(content) + (response.length or 0) <= self.max_bytes:
            if not (chunk := response.read1(2**16)):
                break
            content += chunk
        else:
            raise ImageError(f"a picture's address holds more than {self.max_bytes} bytes; shrink the picture")
        if response.length:
            raise ImageError("a picture's address was cut off; try again, or send the picture itself")
        return bytes(content)


def _https_parts(address: str) -> SplitResult:
    """Raises ImageError for an address that is not https, or has a name and password in it."""
    parts = urlsplit(address)
    if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc or not address.isascii() or not address.isprintable():
        raise ImageError("a picture's address (or where it redirects to) is not a plain https:// one")
    return parts


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


@contextmanager
def _ended_at(connection: ToAddress, deadline: float) -> Iterator[None]:
    """End a connection at its deadline, also where a server sends a byte now and then: timeouts of sockets begin anew with each."""
    connection.connect()
    timer = threading.Timer(_left(deadline), connection.end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
