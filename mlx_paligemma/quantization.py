"""Which layers of a model are packed into few bits, and in which form: the recipes of `mlx-paligemma convert -q`.

Boxes and masks are written with rows of the embedding table, and read from what the picture encoder sees; so by default both are
spared: the table has 8 bits, encoder and projector keep their dtype, and the text model's layers have the bits asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .common.config import PaliGemmaConfig
from .common.errors import OptionError
from .common.packed import AFFINE_GROUPS, FLOAT_MODES, Packing
from .common.tensors import EMBEDDING, HEAD, PATCHES, POSITIONS, WEIGHT, shapes_with_head

BITS = (3, 4, 5, 6, 8)
MODES = ("affine", *FLOAT_MODES)
MIXED = ("mixed_3_4", "mixed_3_5", "mixed_3_6", "mixed_3_8", "mixed_4_6", "mixed_4_8")
TABLES = (EMBEDDING.removesuffix(WEIGHT), HEAD.removesuffix(WEIGHT))
PADDED_TO = 64  # columns of SigLIP's second MLP layer: 4304 become 4352, which every group size divides
_LAYER = re.compile(r"language_model\.layers\.(\d+)\.(.+)")
_TENDER = ("self_attn.v_proj", "mlp.down_proj")  # whose errors spread the most


@dataclass(frozen=True)
class Recipe:
    """What is asked for. `mixed` gives the more tender layers more bits than the others: "mixed_3_6" 6 and 3."""

    bits: int | None = None  # None: 4, or what the mode demands
    group_size: int | None = None  # None: 64, or what the mode demands
    mode: str = "affine"
    mixed: str | None = None
    embedding_bits: int = 8
    vision: bool = False  # the picture encoder and the projector too

    def __post_init__(self) -> None:
        """Raises OptionError where something is out of range, or goes with something else."""
        if self.mode not in MODES:
            raise OptionError(f"--q-mode {self.mode!r} is unknown; choose one of {', '.join(MODES)}")
        if self.mixed is not None and self.mixed not in MIXED:
            raise OptionError(f"--quant-predicate {self.mixed!r} is unknown; choose one of {', '.join(MIXED)}")
        if self.mixed and (self.bits is not None or self.mode != "affine"):
            raise OptionError("--quant-predicate says the bits itself, in mode affine; leave --q-bits and --q-mode out")
        bits, groups = (BITS, AFFINE_GROUPS) if self.mode == "affine" else [(value,) for value in FLOAT_MODES[self.mode]]
        _require("--q-bits", self.bits, bits, self.mode)
        _require("--q-group-size", self.group_size, groups, self.mode)
        _require("--q-embedding-bits", self.embedding_bits, BITS, "affine")

    @property
    def packing(self) -> Packing:
        """Of a layer that nothing else is said about."""
        bits, group_size = FLOAT_MODES.get(self.mode, (4, 64))
        return Packing(self.bits or self._mixed_bits[0] or bits, self.group_size or group_size, self.mode)

    @property
    def tender(self) -> Packing:
        """Of the more tender layers of a mixed recipe."""
        return replace(self.packing, bits=self._mixed_bits[1])

    @property
    def _mixed_bits(self) -> tuple[int, int]:
        """Of most layers and of the more tender ones; 0 where nothing is mixed."""
        low, high = self.mixed.removeprefix("mixed_").split("_") if self.mixed else (0, 0)
        return int(low), int(high)

    @property
    def name(self) -> str:
        """In a few words, for tables and model cards."""
        text = self.mixed or (self.mode if self.mode != "affine" else f"{self.packing.bits}-bit")
        table = "" if self.embedding_bits == 8 else f", table {self.embedding_bits}-bit"
        return f"{text}, groups of {self.packing.group_size}{table}{', vision too' if self.vision else ''}"


def plan(config: PaliGemmaConfig, recipe: Recipe) -> dict[str, Packing]:
    """The packing of every module that gets one, by our names. Those whose columns no group fills are left as they are.

    Raises:
        OptionError: that is all of them.
    """
    shapes = shapes_with_head(config)
    matrices = {name.removesuffix(WEIGHT): shape[1] for name, shape in shapes.items() if len(shape) == 2 and name.endswith(WEIGHT)}
    chosen = {module: _packing(module, width, config, recipe) for module, width in matrices.items()}
    fitting = {module: packing for module, packing in chosen.items() if packing and not matrices[module] % packing.group_size}
    if not fitting:
        raise OptionError(
            f"no layer of this model can be quantised: groups of {recipe.packing.group_size} fill the columns of none"
        )
    return fitting


def padded(config: PaliGemmaConfig) -> PaliGemmaConfig:
    """With the picture encoder's MLP made wider by neurons that do nothing, so that its weights can be packed."""
    width = config.vision.intermediate_size
    return replace(config, vision=replace(config.vision, intermediate_size=-(-width // PADDED_TO) * PADDED_TO))


def quantization_block(modules: Mapping[str, Packing]) -> dict[str, object]:
    """What config.json says about packed modules, as mlx-lm writes it: the commonest form, and by name what differs from it."""
    forms = list(modules.values())
    usual = max(dict.fromkeys(forms), key=forms.count)
    return usual.settings() | {name: packing.settings() for name, packing in modules.items() if packing != usual}


def _packing(module: str, width: int, config: PaliGemmaConfig, recipe: Recipe) -> Packing | None:
    if module == POSITIONS or module == PATCHES.removesuffix(WEIGHT):
        return None
    if module in TABLES:
        return _spared(recipe, width)
    if not module.startswith("language_model."):
        return recipe.packing if recipe.vision else None
    return recipe.tender if _is_tender(module, config, recipe) else recipe.packing


def _spared(recipe: Recipe, width: int) -> Packing:
    """Of the embedding table: affine, in the largest group asked for that its columns fill."""
    wanted = recipe.packing.group_size if recipe.mode == "affine" else 64
    return Packing(recipe.embedding_bits, next((size for size in (wanted, 64, 32) if not width % size), wanted))


def _is_tender(module: str, config: PaliGemmaConfig, recipe: Recipe) -> bool:
    """As mlx-lm's mixed recipes choose: of the first and the last eighth of the layers and every third between them."""
    found = _LAYER.fullmatch(module)
    if recipe.mixed is None or found is None or found[2] not in _TENDER:
        return False
    layer, layers = int(found[1]), config.text.num_hidden_layers
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _require(flag: str, value: int | None, known: tuple[int, ...], mode: str) -> None:
    if value is not None and value not in known:
        raise OptionError(f"{flag} is {value}; in mode {mode} it can be {', '.join(map(str, known))}")
