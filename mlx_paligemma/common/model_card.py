"""README.md of a converted model: what it was made of, how, and the commands that run it.

Format: https://huggingface.co/docs/hub/model-cards, YAML between two lines of `---`, then Markdown.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

FORMS = {"mlx": "MLX format", "hf": "the format of Hugging Face transformers"}
LIBRARIES = {"mlx": "mlx", "hf": "transformers"}  # the Hub's name of what reads a form
GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "[ai.google.dev/gemma/terms](https://ai.google.dev/gemma/terms)."
)
OUTDATED = ("model-index", "widget", "inference")  # measured on, or run by, the source's own weights


def model_card(
    name: str,
    base: str | None = None,
    quantization: str | None = None,
    *,
    version: str,
    to: str = "mlx",
    dtype: str = "bfloat16",
    licence: str = "gemma",
    source_card: str = "",
) -> str:
    """The whole file.

    Args:
        name: what the commands call the model, a Hub id or a folder's name.
        base: the Hub id of the source; None where it was a folder, whose place is nobody's business.
        quantization: the recipe in words; None where nothing is quantised.
        version: of this package, which has written the weights.
        to: the form, "mlx" or "hf".
        dtype: of the weights that are not quantised.
        licence: by the Hub's name of it, where the source's card says nothing.
        source_card: README.md of the source, whose YAML part is kept.
    """
    data = _metadata(base, quantization, to, licence, source_card)
    weights = f"quantised: {quantization}" if quantization else f"stored in {dtype}"
    origin = f" from [`{base}`](https://huggingface.co/{base})" if base else ""
    made = f"This model was converted to {FORMS[to]}{origin} using mlx-paligemma version **{version}**."
    notice = [GEMMA_NOTICE] if data["license"] == "gemma" else []
    parts = [f"# {name.rpartition('/')[2]}", f"{made} Its weights are {weights}.", *_usage(name, to), *notice]
    return f"---\n{_yaml(data)}---\n\n" + "\n\n".join(parts) + "\n"


def _metadata(base: str | None, quantization: str | None, to: str, licence: str, source_card: str) -> dict[str, Any]:
    kept = {key: value for key, value in _source_metadata(source_card).items() if key not in OUTDATED and value is not None}
    data = {"license": licence} | kept | {"library_name": LIBRARIES[to], "pipeline_tag": "image-text-to-text"}
    old = kept["tags"] if isinstance(kept.get("tags"), list) else []
    others = [tag for tag in old if isinstance(tag, str) and tag not in LIBRARIES.values()]
    data["tags"] = list(dict.fromkeys([*others, "paligemma", LIBRARIES[to]]))
    if base is not None:
        data.pop("base_model_relation", None)
        data |= {"base_model": base} | ({"base_model_relation": "quantized"} if quantization else {})
    return data


def _usage(name: str, to: str) -> list[str]:
    quoted = json.dumps(name)
    shell = f'pip install mlx-paligemma\nmlx-paligemma generate photo.jpg -p "detect cat" --model {shlex.quote(name)}'
    ours = (
        f"from mlx_paligemma import load, generate\n\nmodel, processor = load({quoted})\n"
        'result = generate(model, processor, "photo.jpg", "caption en")\nprint(result.text, result.detections)'
    )
    theirs = (
        "from transformers import AutoProcessor, PaliGemmaForConditionalGeneration\n\n"
        f"processor = AutoProcessor.from_pretrained({quoted})\n"
        f"model = PaliGemmaForConditionalGeneration.from_pretrained({quoted})"
    )
    return [_code("sh", shell), _code("python", ours), *([_code("python", theirs)] if to == "hf" else [])]


def _code(language: str, lines: str) -> str:
    return f"```{language}\n{lines}\n```"


def _yaml(data: dict[str, Any]) -> str:
    from huggingface_hub.repocard_data import CardData

    return CardData(**data).to_yaml() + "\n"


def _source_metadata(card: str) -> dict[str, Any]:
    """The YAML part of a card; nothing where there is none or it cannot be read."""
    from huggingface_hub import RepoCard

    if not card.removeprefix("\ufeff").startswith("---") or "\n---" not in card:
        return {}
    try:
        return RepoCard(card.removeprefix("\ufeff"), ignore_metadata_errors=True).data.to_dict()
    except Exception:  # noqa: BLE001 - whatever the YAML reader makes of a damaged card: the weights are no worse for it
        return {}
