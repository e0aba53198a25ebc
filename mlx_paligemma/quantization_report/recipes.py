"""The recipes of a comparison, by short names: `4-bit`, `mixed_3_6`, `nvfp4`, `4-bit:32`, `4-bit:32+vision`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..common.errors import OptionError
from ..quantization import MIXED, MODES, Recipe

DEFAULT = (
    "8-bit", "6-bit", "5-bit", "4-bit", "3-bit", "mixed_3_6", "mixed_4_8", "mxfp4", "mxfp8", "nvfp4", "4-bit:32+vision",
)  # fmt: skip
_NAME = re.compile(r"(?:(?P<bits>\d+)-bit|(?P<word>\w+))(?::(?P<group>\d+))?(?P<vision>\+vision)?")


def read_recipes(names: str | None) -> dict[str, Recipe]:
    """The recipes of a list with commas, by name; None: DEFAULT.

    Raises:
        OptionError: a name is none, or says what cannot be.
    """
    listed: Sequence[str] = DEFAULT if names is None else [name.strip() for name in names.split(",") if name.strip()]
    if not listed:
        raise OptionError(f"--recipes is empty; give names with commas between them, such as {','.join(DEFAULT[:4])}")
    return {name: read_recipe(name) for name in listed}


def read_recipe(name: str) -> Recipe:
    """FORM[:GROUP][+vision]: bits ("4-bit"), a mode or a mixed recipe, the group's size, and whether vision is packed too.

    Raises:
        OptionError: the name is none, or says what cannot be.
    """
    found = _NAME.fullmatch(name)
    word = found["word"] if found else None
    if found is None or (word is not None and word not in (*MIXED, *MODES[1:])):
        known = f"N-bit, {', '.join((*MODES[1:], *MIXED))}"
        raise OptionError(f"recipe {name!r} is unknown; choose of {known}, with :32, :64 or :128 for its groups and +vision")
    try:
        return Recipe(
            bits=int(found["bits"]) if found["bits"] else None,
            group_size=int(found["group"]) if found["group"] else None,
            mode=word if word in MODES else "affine",
            mixed=word if word in MIXED else None,
            vision=found["vision"] is not None,
        )
    except OptionError as error:
        raise OptionError(f"recipe {name!r}: {error}") from None
