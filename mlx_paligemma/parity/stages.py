"""Between the modules: the masks and positions that the text model hands to its layers, and what the cache keeps of them.

A wrong mask shows in no module, since each is compared on the reference's arguments: only in the text model as a whole.
"""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx
import numpy as np

from ..model.kv_cache import LayerCache
from .call import Call, LayerState
from .distance import WRONG, Distance, distance, worst_distance

MASK, POSITIONS, CACHE = "mask", "positions", "cache"  # names in reports, blamed where no module is at fault
TEXT = "language_model"
LAYER = re.compile(r"layers\.\d+")
OFFSET_PLACE, MASK_PLACE = 1, 2  # of a layer's arguments


class Handed:
    """Masks and positions: those of the reference's layers, kept until its text model returns, and those of MLX's."""

    def __init__(self) -> None:
        self._reference: dict[str, Call] = {}
        self._found: dict[str, tuple[Any, ...]] = {}

    def note(self, call: Call) -> None:
        """Keep a call, if a layer's."""
        name = call.name.removeprefix(f"{TEXT}.")
        if call.name != name and LAYER.fullmatch(name):
            self._reference[name] = call

    def capture(self, name: str, arguments: tuple[Any, ...], output: mx.array) -> None:
        """For `capturing`: what an MLX layer is given."""
        mx.eval(output)  # else all layers' graphs pile up
        self._found[name] = arguments

    def compare(self) -> list[tuple[str, Distance]]:
        """The worst layer of each, and nothing is kept. Positions count where the cache makes them matter to later calls."""
        masks, positions = [], []
        for name, call in self._reference.items():
            if name not in self._found:
                continue
            given, found = call.arguments, self._found[name]
            queries, later = call.output.shape[1], found[3]
            keys = queries if later is None else later.offset  # of MLX's own cache, after the call
            masks.append(_mask_distance(found[MASK_PLACE], given[MASK_PLACE], (len(call.output), queries, keys), call.real))
            if given[3] is not None:
                positions.append(distance(np.array(found[OFFSET_PLACE]), np.asarray(given[OFFSET_PLACE])))
        self._reference, self._found = {}, {}
        return [(name, worst_distance(found)) for name, found in ((MASK, masks), (POSITIONS, positions)) if found]


def cache_distance(caches: list[LayerCache], call: Call) -> Distance | None:
    """Of MLX's caches after a call from what the reference's held then; None where the call had none."""
    wanted = [state for state in call.after if isinstance(state, LayerState)]
    if not wanted:
        return None
    found = []
    for cache, state in zip(caches, wanted, strict=True):
        if cache.offset != state.keys.shape[2]:
            return WRONG
        for array, reference in ((cache.keys, state.keys), (cache.values, state.values)):
            kept = array[:, :, : cache.offset].astype(mx.float32)
            found.append(distance(np.array(kept), np.asarray(reference)))
    return worst_distance(found)


def caches_of(arguments: tuple[Any, ...]) -> list[LayerCache]:
    """The caches among a call's arguments in MLX's form."""
    return [value for value in arguments if isinstance(value, LayerCache)]


def _mask_distance(found: Any, wanted: Any, shape: tuple[int, int, int], real: np.ndarray | None) -> Distance:
    """Of queries that are no padding, which may see anything."""
    try:
        one, other = (np.broadcast_to(seen_keys(mask, *shape[1:]), (shape[0], 1, *shape[1:])) for mask in (found, wanted))
    except ValueError:
        return WRONG
    if real is not None:
        one, other = one[:, 0][real], other[:, 0][real]
    return distance(one.astype(np.float32), other.astype(np.float32))


def seen_keys(mask: Any, queries: int, keys: int) -> np.ndarray:
    """Bool, broadcastable to [B, 1, queries, keys], of a mask in any form: None, "causal", bools, or numbers to be added."""
    if mask is None:
        return np.ones((1, 1, queries, keys), dtype=bool)
    if isinstance(mask, str):
        return np.tri(queries, keys, keys - queries, dtype=bool)[None, None]
    array = np.array(mask.astype(mx.float32) if isinstance(mask, mx.array) and mask.dtype != mx.bool_ else mask)
    return array if array.dtype == bool else array >= 0
