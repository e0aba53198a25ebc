"""Pictures that were encoded before, so that a second question about one skips the vision tower.

Only the projector's output may be kept. Keys and values of the text model may not: the prefix sees itself in both directions,
so what a picture's tokens hold there depends on the question (PaliGemma, arXiv:2407.07726, section 3).
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .errors import OptionError
from .processor import ModelInputs

DEFAULT_BYTES = 512 * 2**20
PICTURES_AT_ONCE = 8  # that the vision tower encodes together: more need more memory and are hardly faster


class FeatureCache:
    """Image rows of one model by the pixels that they come from; the longest unused go first when the room is used up.

    Exact: the pixels are those after resizing, and every bit of them counts. Another model empties the cache.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES):
        if not isinstance(max_bytes, int) or max_bytes < 0:
            raise OptionError(f"max_bytes is {max_bytes!r}; it must be a whole number of at least 0")
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self.bytes = 0  # in use
        self._rows: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()
        self._model: weakref.ref[Any] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, model: object, key: bytes) -> Any | None:
        """The backend's array [P, D] that was put under `key`, or None."""
        self._belong_to(model)
        if key not in self._rows:
            self.misses += 1
            return None
        self.hits += 1
        self._rows.move_to_end(key)
        return self._rows[key][0]

    def put(self, model: object, key: bytes, rows: Any, size: int) -> None:
        """Keep an array of `size` bytes, unless it alone is larger than the whole cache."""
        self._belong_to(model)
        if size > self.max_bytes or key in self._rows:
            return
        self._rows[key] = (rows, size)
        self.bytes += size
        while self.bytes > self.max_bytes:
            self.bytes -= self._rows.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Forget all pictures."""
        self._rows.clear()
        self.bytes = 0

    def _belong_to(self, model: object) -> None:
        if self._model is None or self._model() is not model:
            self.clear()
            self._model = weakref.ref(model)


def picture_features(
    model: object, inputs: ModelInputs, encode: Callable[[np.ndarray], Sequence[Any]], features: FeatureCache | None = None
) -> list[list[Any]]:
    """The image rows of a batch as B lists of I arrays [P, D], None where a row has fewer pictures.

    Each different picture is encoded once, or taken from the cache. `encode` turns pixels [n, height, width, 3] into n
    arrays of the backend, and is called for PICTURES_AT_ONCE at most.
    """
    counts = [inputs.pixel_values.shape[1]] * len(inputs.pixel_values) if inputs.pictures is None else inputs.pictures
    keys = [[picture_key(pixels) for pixels in row[:count]] for row, count in zip(inputs.pixel_values, counts, strict=True)]
    pixels = {key: inputs.pixel_values[b, i] for b, row in enumerate(keys) for i, key in enumerate(row)}
    found = {} if features is None else {key: rows for key in pixels if (rows := features.get(model, key)) is not None}
    missing = [key for key in pixels if key not in found]
    for start in range(0, len(missing), PICTURES_AT_ONCE):
        chosen = missing[start : start + PICTURES_AT_ONCE]
        for key, rows in zip(chosen, encode(np.stack([pixels[key] for key in chosen])), strict=True):
            found[key] = rows
            if features is not None:
                features.put(model, key, rows, rows.nbytes)
    most = inputs.pixel_values.shape[1]
    return [[found[key] for key in row] + [None] * (most - len(row)) for row in keys]


def check_cache(features: object) -> None:
    """Raises OptionError where something else was given as `features`."""
    if features is not None and not isinstance(features, FeatureCache):
        raise OptionError(f"features is {features!r}; give a FeatureCache or None")


def picture_key(pixels: np.ndarray) -> bytes:
    """A name for float32 pixels [height, width, 3] that no other picture has."""
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
