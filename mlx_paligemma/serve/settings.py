"""What a server allows: one frozen value, made of the command's flags."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.errors import OptionError

LOOPBACK = ("127.0.0.1", "::1", "localhost")  # hosts that only this machine reaches


@dataclass(frozen=True)
class Settings:
    """Limits and rights. The defaults are safe for a server that strangers can reach."""

    model_name: str = "demo"  # what requests call the model
    api_key: str | None = None  # None: anybody may ask
    cors_origins: tuple[str, ...] = ()  # web pages that may ask; none by default
    max_rows: int = 8  # answers that are made together
    max_waiting: int = 64  # requests that may be open beside these; more are answered 429
    max_choices: int = 8  # of `n`
    max_images: int = 8  # in one request
    max_body_bytes: int = 20 * 2**20
    max_image_pixels: int = 50_000_000
    max_tokens: int = 256  # of an answer, where a request does not say
    allow_remote_images: bool = False  # fetch https addresses
    remote_timeout: float = 10.0  # seconds for a whole fetch, redirects included
    idle_timeout: float = 10.0  # seconds without a byte from or to a client that is to send or to read
    body_timeout: float = 60.0  # seconds for a whole body
    shutdown_timeout: float = 60.0  # seconds that requests have to finish
    log_prompts: bool = False

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_choices", "max_images", "max_body_bytes", "max_image_pixels", "max_tokens"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_waiting < 0:
            raise OptionError(f"max_waiting is {self.max_waiting}; it must be at least 0")
        for name in ("remote_timeout", "idle_timeout", "body_timeout", "shutdown_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise OptionError(f"{name} is {getattr(self, name)}; it must be a number of seconds above 0")
        if self.api_key is not None and not self.api_key.strip():
            raise OptionError("the API key is empty; give one, or leave it out")
