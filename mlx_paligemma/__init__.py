"""PaliGemma and PaliGemma 2 in MLX.

    from mlx_paligemma import load, generate
    model, processor = load("google/paligemma2-3b-mix-448")
    print(generate(model, processor, "photo.jpg", "caption en").text)

Importing the package costs nothing and needs no mlx: public names are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .common.errors import PaliGemmaError
    from .common.feature_cache import FeatureCache
    from .common.locations import format_detections, parse_detections
    from .common.results import Chunk, Detection, Detections, GenerationResult, Stats
    from .converted_folder import convert
    from .generation import as_mlx, batch_generate, generate, stream_generate
    from .quantization import Recipe
    from .weights import load

__version__ = "0.1.0"
__all__ = [
    "Chunk",
    "Detection",
    "Detections",
    "FeatureCache",
    "GenerationResult",
    "PaliGemmaError",
    "Recipe",
    "Stats",
    "as_mlx",
    "batch_generate",
    "convert",
    "format_detections",
    "generate",
    "load",
    "parse_detections",
    "stream_generate",
]

_HOME = {
    "load": "weights",
    "generate": "generation",
    "stream_generate": "generation",
    "batch_generate": "generation",
    "as_mlx": "generation",
    "convert": "converted_folder",
    "Recipe": "quantization",
    "Chunk": "common.results",
    "Detection": "common.results",
    "Detections": "common.results",
    "FeatureCache": "common.feature_cache",
    "format_detections": "common.locations",
    "parse_detections": "common.locations",
    "GenerationResult": "common.results",
    "Stats": "common.results",
    "PaliGemmaError": "common.errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
