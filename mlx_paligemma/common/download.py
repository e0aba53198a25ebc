"""The bytes behind an http(s) address, bounded in size and time. Knows nothing of pictures."""

from __future__ import annotations

import http.client
import string
import time
import urllib.error
import urllib.parse
import urllib.request

from .errors import ImageError

MAX_DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_TIMEOUT = 30.0  # seconds, for a silence as for the whole download


def download(address: str, name: str) -> bytes:
    """What the address answers; `name` is what an error message calls it.

    Raises:
        ImageError: it cannot be reached, answers with an error, is too large or too slow.
    """
    try:
        ascii_address = urllib.parse.quote(address, safe=string.punctuation)  # quotes spaces and letters outside ASCII only
        request = urllib.request.Request(ascii_address, headers={"User-Agent": "mlx-paligemma"})  # some sites refuse urllib's own
        return _read(request, name)
    except urllib.error.HTTPError as error:
        error.close()
        raise ImageError(f"{name}: the server answered {error.code} {_reason(error)}; check the address") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ImageError(f"{name} cannot be downloaded ({_reason(error)}); check the address and the network") from None


def _read(request: urllib.request.Request, name: str) -> bytes:
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT
    content = bytearray()
    with _http_opener().open(request, timeout=DOWNLOAD_TIMEOUT) as response:
        while chunk := response.read1(2**16):
            content += chunk
            if len(content) + (response.length or 0) > MAX_DOWNLOAD_BYTES:
                raise ImageError(f"{name} is larger than {MAX_DOWNLOAD_BYTES} bytes; download it yourself and shrink it")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not done after {DOWNLOAD_TIMEOUT:g} s")
    return bytes(content)


def _http_opener() -> urllib.request.OpenerDirector:
    """An opener that knows http and https alone, so that no redirect leads to a file or to ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.UnknownHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
