"""What users rely on, counted over many answers: batches, scores, the grammar, masks, and the memory of long runs.

A plain run takes small counts; `make acceptance` takes the full ones and prints the figures.
"""

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import tiny_models
from test_grammar import FORM

import mlx_paligemma
import torch_ref
from mlx_paligemma.common.processor import ModelInputs
from mlx_paligemma.decode_step import Decoding
from mlx_paligemma.demo.accuracy import iou
from mlx_paligemma.demo.questions import ask
from mlx_paligemma.demo.scenes import KINDS, draw_scene
from torch_ref.generation import as_torch

TIE = 1e-4  # two best logits closer than this may swap between batch sizes
SCORE = 1e-4
SEED = 6_000_000  # no training seed is near
ROOT = Path(__file__).parent.parent
PACKAGES = {"mlx": mlx_paligemma, "torch": torch_ref}


@dataclass(frozen=True)
class Pair:
    """A picture, or two, and a prompt."""

    pictures: list
    prompt: str


def pairs(count):
    """Pictures of all sizes with prompts of all lengths; now and then two pictures."""
    for number in range(count):
        rng = np.random.default_rng([SEED, number])
        scene = draw_scene(rng)
        prompt = ask(scene, rng, lambda shape: ()).prefix
        extra = " and what else is there in the whole of this picture?" * int(rng.integers(0, 4)) if number % 5 == 0 else ""
        yield Pair([scene.image] * (2 if number % 17 == 0 else 1), prompt + extra)


def demo_folder(scratch):
    return None


def gemma2_folder(scratch):
    return tiny_models.write_pair(scratch / "gemma2", tiny_models.config_json(2)).folder


@pytest.fixture(scope="module", params=[demo_folder, gemma2_folder], ids=["demo", "random gemma 2"])
def models(request, tmp_path_factory):
    folder = request.param(tmp_path_factory.mktemp("models"))
    return {name: package.load(folder) for name, package in PACKAGES.items()}


def answers(package, model, processor, asked, size):
    results = []
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        pictures, prompts = [pair.pictures for pair in part], [pair.prompt for pair in part]
        results += package.batch_generate(model, processor, pictures, prompts, max_tokens=40)
    return results


def gap(models, pair, tokens):
    """How far the best logit is above the second after these tokens."""
    model, processor = models["torch"]
    inputs = processor([pair.pictures], [pair.prompt])
    ids = np.concatenate([inputs.input_ids, np.array([tokens], dtype=np.int32).reshape(1, -1)], axis=1)
    whole = ModelInputs(ids, inputs.pixel_values, None, np.array([inputs.input_ids.shape[1]], dtype=np.int32))
    with torch.no_grad():
        best = model(**as_torch(whole))[0, -1].topk(2).values
    return float(best[0] - best[1])


def differing(models, asked, found, wanted):
    """Rows whose tokens differ, with the gap where they part."""
    rows = []
    for pair, a, b in zip(asked, found, wanted, strict=True):
        if a.token_ids != b.token_ids:
            same = [x == y for x, y in zip(a.token_ids, b.token_ids, strict=False)]
            place = same.index(False) if False in same else len(same)
            rows.append((pair.prompt, place, gap(models, pair, b.token_ids[:place])))
    return rows


def test_padding_never_changes_an_answer_nor_its_scores(models, count):
    asked = list(pairs(count(24, 200)))
    alone = {name: answers(package, *models[name], asked, 1) for name, package in PACKAGES.items()}
    wanted = alone["torch"]
    for name, package in PACKAGES.items():
        for size in (1, 3, 8):
            found = alone[name] if size == 1 else answers(package, *models[name], asked, size)
            rows = differing(models, asked, found, wanted)
            print(f"{name}, batches of {size}: {len(asked) - len(rows)} of {len(asked)} answers identical; others: {rows}")
            assert all(distance < TIE for *_, distance in rows), rows
            assert len(rows) <= 0.01 * len(asked), rows
            worst = max((abs(a - b) for pair in zip(found, wanted, strict=True) for a, b in score_pairs(*pair)), default=0.0)
            print(f"    largest difference of a score: {worst:.1e}")
            assert worst <= SCORE


def score_pairs(found, wanted):
    if found.token_ids != wanted.token_ids:
        return []
    return [(a.score, b.score) for a, b in zip(found.detections, wanted.detections, strict=True)]


def locating(count):
    """Prompts to detect or segment, about shapes that are there and others."""
    for number in range(count):
        rng = np.random.default_rng([SEED + 1, number])
        scene = draw_scene(rng)
        task = "segment" if number % 2 else "detect"
        yield Pair([scene.image], ask(scene, rng, lambda shape: (), task=task).prefix)


@pytest.mark.parametrize(("task", "saved"), [("detect", 0.7), ("segment", 0.9)])
def test_looking_ahead_changes_no_answer_and_saves_passes(task, saved, count, monkeypatch):
    """One prompt at a time, with and without."""
    model, processor = mlx_paligemma.load()
    asked = [pair for pair in locating(2 * count(12, 1000)) if pair.prompt.startswith(task)]
    passes, call = [], Decoding.__call__
    monkeypatch.setattr(Decoding, "__call__", lambda self, *given: passes.append(given) or call(self, *given))
    found, cost, seconds = {}, {}, {}
    for ahead in (True, False):
        passes.clear()
        start = time.process_time()
        found[ahead] = [mlx_paligemma.generate(model, processor, *vars(pair).values(), look_ahead=ahead) for pair in asked]
        seconds[ahead] = time.process_time() - start
        cost[ahead] = len(passes) / sum(len(result.detections) for result in found[ahead])
    same = sum(a.token_ids == b.token_ids for a, b in zip(found[True], found[False], strict=True))
    worst = max((abs(a - b) for pair in zip(*found.values(), strict=True) for a, b in score_pairs(*pair)), default=0.0)
    print(f"look-ahead, {task}: {same} of {len(asked)} answers identical, scores within {worst:.1e}; passes per object")
    print(f"    {cost[True]:.2f} instead of {cost[False]:.2f}; CPU time {seconds[True] / seconds[False]:.2f} of that without")
    assert same == len(asked) and worst <= SCORE and cost[True] < saved * cost[False]


def test_the_fused_model_answers_like_the_unfused_one(count):
    asked, results = list(pairs(count(16, 300))), []
    for fused in (True, False):
        model, processor = mlx_paligemma.load(fused=fused)
        results.append(answers(mlx_paligemma, model, processor, asked, 8))
    same = sum(a.token_ids == b.token_ids for a, b in zip(*results, strict=True))
    print(f"fused: {same} of {len(asked)} answers identical")
    assert same == len(asked)


@pytest.mark.parametrize("name", PACKAGES)
def test_the_grammar_changes_only_what_has_not_the_form(name, count):
    package, asked = PACKAGES[name], list(locating(count(24, 500)))
    model, processor = package.load()
    changed = broken = tokens = 0
    for start in range(0, len(asked), 10):
        part = asked[start : start + 10]
        pictures, prompts = [pair.pictures for pair in part], [pair.prompt for pair in part]
        with_it, without = (package.batch_generate(model, processor, pictures, prompts, grammar=on) for on in (True, False))
        for held, free in zip(with_it, without, strict=True):
            good = has_form(free)
            broken += not good
            changed += held.stats.grammar_changes
            tokens += held.stats.generation_tokens
            assert has_form(held), held.text
            assert not good or (held.token_ids == free.token_ids and held.stats.grammar_changes == 0), (free.text, held.text)
            assert good or held.stats.grammar_changes > 0, (free.text, held.text)
    print(f"{name}: {len(asked)} prompts, {tokens} tokens; {broken} answers broke the form, {changed} tokens were changed")


def has_form(result):
    bins = [[int(value) for value in re.findall(r"<loc(\d+)>", locs[0])] for locs in re.finditer(r"(?:<loc\d{4}>)+", result.text)]
    named = [(found.box, found.label) for found in result.detections]
    ordered = all(y1 >= y0 and x1 >= x0 for y0, x0, y1, x1 in bins if len(bins)) if all(len(b) == 4 for b in bins) else False
    return bool(FORM.fullmatch(result.text)) and ordered and len(set(named)) == len(named) and result.finish_reason == "stop"


@pytest.mark.parametrize("name", PACKAGES)
def test_masks_lie_on_the_true_masks(name, count):
    package, values, number = PACKAGES[name], [], 0
    model, processor = package.load()
    while len(values) < count(12, 100):
        scene = draw_scene(np.random.default_rng([SEED + 2, number]), number=False)
        number += 1
        kinds = [shape.kind for shape in scene.shapes]
        shape = scene.shapes[0]
        if kinds.count(shape.kind) > 1:
            continue
        result = package.generate(model, processor, scene.image, f"segment {shape.kind}")
        truth = shape.mask(*scene.image.size)
        masks = [found.mask for found in result.detections]
        values.append(max(((mask & truth).sum() / (mask | truth).sum() for mask in masks), default=0.0))
    print(f"{name}: {len(values)} scenes, mean mask IoU {np.mean(values):.3f}, median {np.median(values):.3f}")
    assert np.mean(values) >= 0.70


def test_true_masks_survive_the_way_to_tokens_and_back(count):
    _, processor = mlx_paligemma.load()
    values = []
    for number in range(count(10, 100)):
        scene = draw_scene(np.random.default_rng([SEED + 3, number]), number=False)
        width, height = scene.image.size
        truth = mlx_paligemma.Detections(tuple(true_detection(shape, width, height) for shape in scene.shapes), width, height)
        text = mlx_paligemma.format_detections(truth, processor.encode_masks)
        back = mlx_paligemma.parse_detections(text, width, height, processor.decode_masks)
        for found, wanted in zip(back, truth, strict=True):
            assert iou(found.box, wanted.box) > 0.95
            values.append((found.mask & wanted.mask).sum() / (found.mask | wanted.mask).sum())
    print(f"{len(values)} masks to 16 tokens and back: mean IoU {np.mean(values):.3f}")
    assert np.mean(values) > 0.9


def true_detection(shape, width, height):
    x0, y0, x1, y1 = shape.box
    box = (x0 * width, y0 * height, x1 * width, y1 * height)
    return mlx_paligemma.Detection(shape.kind, box, mask=shape.mask(width, height))


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path, count):
    few, many = count((10, 40), (50, 500))
    peaks = {number: peak_of_a_run(tmp_path, number) for number in (few, many)}
    print(f"peak memory of a run over {few} pictures {peaks[few] / 1e6:.1f} MB, over {many} {peaks[many] / 1e6:.1f} MB")
    assert peaks[many] <= 1.05 * peaks[few]


def peak_of_a_run(tmp_path, number):
    folder = tmp_path / f"{number}"
    folder.mkdir()
    for i in range(number):
        draw_scene(np.random.default_rng([SEED + 4, i]), size=200).image.save(folder / f"{i:04d}.png")
    code = (
        "import resource, sys; from mlx_paligemma.cli.app import main\n"
        "try: main()\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    flags = ["generate", folder, "-p", f"segment {KINDS[0]} ; {KINDS[1]}", "--format", "json", "-o", tmp_path / f"{number}.jsonl",
             "--batch-size", "5"]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, *map(str, flags)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / f"{number}.jsonl").read_text().splitlines()]
    assert len(lines) == number
    return int(done.stderr.split()[-1]) * (1 if sys.platform == "darwin" else 1024)
