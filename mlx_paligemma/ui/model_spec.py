"""Which model in which form: what the page asks the shelf for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..backends import NAMES
from ..common.errors import OptionError


@dataclass(frozen=True)
class ModelSpec:
    """A checkpoint and how to compute with it."""

    name: str | None = None  # a folder or a Hub id; None: the bundled demo
    backend: str = NAMES[0]
    dtype: str | None = None  # None: as stored
    revision: str | None = None  # of a Hub id

    def __post_init__(self) -> None:
        if self.backend not in NAMES:
            raise OptionError(f"backend {self.backend!r} is unknown; choose {' or '.join(NAMES)}")

    @classmethod
    def of(cls, name: str | None, backend: str, dtype: str | None, revision: str | None = None) -> ModelSpec:
        """From fields of the page, where an empty one, "demo" and "as stored" leave the choice to us."""
        written, at = (name or "").strip(), (revision or "").strip()
        return cls(None if written in ("", DEMO) else written, backend, None if dtype in (None, AS_STORED) else dtype, at or None)

    @property
    def short_name(self) -> str:
        """The Hub id, or the folder's name without the path to it."""
        if self.name is None:
            return DEMO
        try:
            path = Path(self.name).expanduser()
            return path.resolve().name if path.exists() else self.name
        except (OSError, RuntimeError):  # a name too long, the home of a user that does not exist
            return self.name


DEMO = "demo"
AS_STORED = "as stored"
DTYPES = (AS_STORED, "float32", "bfloat16", "float16")
