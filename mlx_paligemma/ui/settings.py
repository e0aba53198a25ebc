"""What the page allows: one frozen value, made of the command's flags."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.errors import OptionError


@dataclass(frozen=True)
class Settings:
    """Limits and rights."""

    can_swap: bool = True  # visitors may load other models, from the Hub or a folder of this machine
    max_file_bytes: int = 20_000_000  # of an uploaded file
    max_image_pixels: int = 50_000_000  # counted before a picture is decoded
    max_files: int = 200  # of a batch
    max_tokens: int = 1024  # that the slider goes up to
    max_prompt: int = 2000  # characters
    files_kept: int = 3600  # seconds for which uploads and downloads are kept

    def __post_init__(self) -> None:
        for name in ("max_file_bytes", "max_image_pixels", "max_files", "max_tokens", "max_prompt", "files_kept"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least 1")
