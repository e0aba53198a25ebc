"""Other programs read the folders that `mlx-paligemma convert` writes, and compute what we compute.

Usage: `make consumers`, or python benchmarks/consumers.py [--environments FOLDER]
Tiny random PaliGemma 1 and 2 are converted in each form; mlx-vlm loads those for MLX, in an environment of its own, transformers
those for the Hub; and folders that mlx-vlm quantised are read by us. Each reader has its own loader and prepares picture and
prompt with its own processor. Compared: ids, pixels, logits of the prompt, log probabilities of a greedy answer through its own
cache. Exit 1 where something differs that no known defect explains.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import mlx.core as mx
import numpy as np
import typer
from comparison.random_checkpoint import write_checkpoint
from comparison.reading import Case, Outcome, Reader

from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.hub import bundled_checkpoint
from mlx_paligemma.common.processor import PaliGemmaProcessor
from mlx_paligemma.common.tokenizer import PaliGemmaTokenizer
from mlx_paligemma.converted_folder import convert
from mlx_paligemma.model.kv_cache import KVCache
from mlx_paligemma.quantization import Recipe
from mlx_paligemma.weights import load_model

ROOT = Path(__file__).parent.parent
PICTURE, PROMPT, TOKENS = ROOT / "mlx_paligemma" / "demo" / "shapes.png", "detect star", 12
VISION = {"hidden_size": 128, "intermediate_size": 200, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 112}
TEXT = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 64}
GENERATIONS = {
    "PaliGemma 1": TEXT | {"model_type": "gemma", "num_key_value_heads": 1},
    "PaliGemma 2": TEXT | {"model_type": "gemma2", "num_key_value_heads": 2, "query_pre_attn_scalar": 64},
}
RECIPES = {
    "unquantised": None, "4-bit": Recipe(), "8-bit": Recipe(8), "3-bit, groups of 32": Recipe(3, 32),
    "mxfp4": Recipe(mode="mxfp4"), "mxfp8": Recipe(mode="mxfp8"), "nvfp4": Recipe(mode="nvfp4"),
    "mixed_3_6": Recipe(mixed="mixed_3_6"), "4-bit, vision too": Recipe(vision=True),
}  # fmt: skip
WRITTEN_BY_MLX_VLM = {"4-bit, made by mlx-vlm": ("-q",), "mixed_3_6, made by mlx-vlm": ("-q", "--quant-predicate", "mixed_3_6")}
WINDOW_IGNORED = "mlx-vlm 0.7.10 reads sliding_window and never uses it: beyond the window its answers are others"


def main(
    environments: Annotated[Path, typer.Option(help="Folder with one environment per reader.")] = ROOT / ".venv-bench",
) -> None:
    """Convert, have read, compare."""
    print("| reader | model | form | ids and pixels | prompt | answer | as expected | remark |\n|---|---|---|---|---|---|---|---|")
    outcomes = []
    for case in cases(environments):
        with tempfile.TemporaryDirectory(prefix="paligemma-consumers-") as scratch:
            outcomes.append(outcome(case, Path(scratch)))
        print(outcomes[-1].row(), flush=True)
    raise typer.Exit(int(not all(found.passes for found in outcomes)))


def cases(environments: Path) -> Iterator[Case]:
    """All of them."""
    vlm = Reader("mlx-vlm", str(environments / "mlx-vlm" / "bin" / "python"), "consumer_mlx_vlm.py", "mlx")
    transformers = Reader("transformers", sys.executable, "consumer_transformers.py", "hf")
    for generation in GENERATIONS:
        yield Case(transformers, generation, "unquantised")
        yield Case(transformers, generation, "4-bit, unpacked again")
        yield from (Case(vlm, generation, recipe) for recipe in (*RECIPES, *WRITTEN_BY_MLX_VLM))
        yield Case(vlm, generation, "4-bit", dtype="bfloat16")
    yield Case(transformers, "PaliGemma 2", "unquantised", 8)
    yield Case(vlm, "PaliGemma 2", "unquantised", 8, defect=WINDOW_IGNORED)


def outcome(case: Case, scratch: Path) -> Outcome:
    """Of one case, in an empty folder."""
    try:
        folder = _converted(case, scratch)
    except subprocess.CalledProcessError as error:
        return Outcome(case, problem=_last_line(error.stderr))
    job = {"folder": str(folder), "picture": str(PICTURE), "prompt": PROMPT, "tokens": TOKENS, "output": str(scratch / "made.npz")}
    variables = os.environ | {"MLX_ENABLE_TF32": "0", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [case.reader.python, str(Path(__file__).parent / case.reader.script), json.dumps(job)]
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)
    except OSError as error:
        return Outcome(case, problem=f"{case.reader.python} cannot be started ({error.strerror}): make consumers")
    if done.returncode:
        return Outcome(case, problem=_last_line(done.stderr))
    with np.load(scratch / "made.npz") as made:
        return _compared(case, folder, dict(made))


def _converted(case: Case, scratch: Path) -> Path:
    source, made = scratch / "source", scratch / "made"
    source.mkdir()
    write_checkpoint(source, _config(case), "float32")
    (source / "tokenizer.model").write_bytes((bundled_checkpoint() / "tokenizer.model").read_bytes())
    if case.recipe in RECIPES:
        convert(source, made, to=case.reader.form, dtype=case.dtype, recipe=RECIPES[case.recipe])
    elif case.recipe in WRITTEN_BY_MLX_VLM:
        convert(source, scratch / "hf", to="hf")
        command = [case.reader.python, "-m", "mlx_vlm.convert", "--hf-path", str(scratch / "hf"), "--mlx-path", str(made)]
        subprocess.run([*command, *WRITTEN_BY_MLX_VLM[case.recipe]], check=True, capture_output=True, text=True)
    else:
        convert(source, scratch / "packed", recipe=Recipe())
        convert(scratch / "packed", made, to=case.reader.form, dtype=case.dtype)
    return made


def _config(case: Case) -> PaliGemmaConfig:
    demo = PaliGemmaConfig.from_folder(bundled_checkpoint())
    text = GENERATIONS[case.generation] | {"vocab_size": demo.text.vocab_size}
    text |= {"sliding_window": case.window} if case.window else {}
    data: dict[str, Any] = {"model_type": "paligemma", "text_config": text, "vision_config": VISION}
    return replace(PaliGemmaConfig.from_dict(data), image_token_index=demo.image_token_index)


def _compared(case: Case, folder: Path, made: dict[str, np.ndarray]) -> Outcome:
    model = load_model(read_checkpoint(folder), "float32")
    inputs = PaliGemmaProcessor(model.config, PaliGemmaTokenizer.from_folder(folder))([PICTURE], [PROMPT])
    pixels = inputs.pixel_values[:, 0].transpose(0, 3, 1, 2)
    same = np.array_equal(inputs.input_ids, made["ids"]) and np.array_equal(pixels, made["pixels"])
    ids, picture = mx.array(inputs.input_ids), mx.array(inputs.pixel_values)
    logits = np.array(model(ids, picture))
    largest = float(np.abs(logits).max())
    answer = _logprobs(model, ids, picture, made["tokens"])
    errors = [
        float(np.abs(ours - theirs).max()) / largest for ours, theirs in ((logits, made["logits"]), (answer, made["logprobs"]))
    ]
    return Outcome(case, same, *errors, width=model.config.text.hidden_size, positions=ids.shape[1] + TOKENS)


def _logprobs(model: Any, ids: mx.array, picture: mx.array, tokens: np.ndarray) -> np.ndarray:
    """Ours [T, V] after the prompt and after each token of the reader's answer but the last."""
    cache = KVCache(model.config.text, 1, ids.shape[1] + len(tokens), mx.float32)
    parts = [model.prefill(ids, model.encode_images(picture), cache)]
    parts += [model.decode(mx.array([[token]]), cache) for token in tokens[:-1].tolist()]
    logits = mx.concatenate(parts, axis=1)[0]
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


if __name__ == "__main__":
    typer.run(main)
