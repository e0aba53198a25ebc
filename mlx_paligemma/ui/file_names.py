"""Names for the files of many pictures, of which no two are the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from ..common.formats import picture_stem

_ODD = re.compile(r"[^\w.-]+")


def unique_names(names: Sequence[str]) -> list[str]:
    """The same, but with -2, -3, ... before the ending where an earlier one has the name; none takes the name of another.

    Names that differ in upper and lower case alone are one file on many disks, and count as the same.
    """
    own, used, found = {name.casefold() for name in names}, set[str](), list[str]()
    for name in names:
        path = Path(name)
        numbered = (f"{path.stem}-{number}{path.suffix}" for number in count(2))
        free = (other for other in numbered if other.casefold() not in own | used)
        found.append(name if name.casefold() not in used else next(free))
        used.add(found[-1].casefold())
    return found


def plain_stem(name: str) -> str:
    """A picture's name without its ending, in letters and digits of any script, as any disk and browser may save it."""
    return _ODD.sub("-", picture_stem(name)).strip("-.") or "picture"
