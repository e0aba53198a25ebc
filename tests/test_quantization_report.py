"""Comparing recipes by the answers that a quantised model still gives."""

import json

import checkpoints
import mlx.core as mx
import numpy as np
import pytest
from program import PICTURE, one_line, program

from mlx_paligemma import as_mlx, load
from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.errors import OptionError, TooLargeError
from mlx_paligemma.common.hub import bundled_checkpoint
from mlx_paligemma.common.results import Detection
from mlx_paligemma.converted_folder import convert
from mlx_paligemma.demo import accuracy
from mlx_paligemma.demo.accuracy import FLOORS, mask_iou
from mlx_paligemma.quantization import Recipe
from mlx_paligemma.quantization_report import divergence, evaluate, quantised
from mlx_paligemma.quantization_report.agreement import agreement, matched
from mlx_paligemma.quantization_report.answers import Answer, Asker, Batch
from mlx_paligemma.quantization_report.divergence import batch_divergence, mean_divergence
from mlx_paligemma.quantization_report.evaluate import Setup
from mlx_paligemma.quantization_report.quantised import Quantised, quantise
from mlx_paligemma.quantization_report.recipes import DEFAULT, read_recipe, read_recipes
from mlx_paligemma.quantization_report.report import Figure

PROMPTS = ("caption en", "detect star ; circle", "segment heart")
SMALL_MODEL = 5e-6  # relative error of logits that float32 products in another order explain
BOX = (10.0, 10.0, 50.0, 50.0)


def asker(model, processor):
    return Asker(model, processor, 60, lambda doing: None)


def quantised_asker(name, processor):
    return asker(quantise(read_checkpoint(bundled_checkpoint()), read_recipe(name), "float32").model, processor)


def batch(*texts):
    answers = tuple(Answer(text, (), 100, 100) for text in texts)
    return [Batch((PICTURE,) * len(texts), ("detect x",) * len(texts), answers)]


def overlaps(reference, other):
    return agreement(batch(reference), batch(other), None)["box IoU"]


@pytest.fixture(scope="module")
def reference():
    """The demo model, which has answered three prompts."""
    found = asker(*load())
    found([PICTURE] * len(PROMPTS), PROMPTS)
    return found


@pytest.fixture
def run(monkeypatch, capfd):
    def call(*arguments):
        return program(monkeypatch, capfd)("evaluate-quantization", *arguments)

    return call


def test_a_model_does_not_diverge_from_itself(reference):
    assert batch_divergence(reference, reference, reference.batches[0]) == [0.0] * sum(
        len(answer.token_ids) for answer in reference.batches[0].answers
    )


def test_the_divergence_is_the_one_that_whole_rows_give(reference, monkeypatch):
    """All logits at once, with the answers as suffixes, in NumPy's float64."""
    monkeypatch.setattr(divergence, "PIECE", 16)
    other = quantised_asker("3-bit", reference.processor)
    answers = reference.batches[0].answers
    assert sum(len(answer.token_ids) for answer in answers) > 2 * divergence.PIECE
    expected = []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        inputs = reference.processor([PICTURE], [prompt], [answer.text])
        suffix = inputs.labels[0] >= 0
        assert tuple(inputs.labels[0][suffix]) == answer.token_ids
        arrays = {name: mx.array(getattr(inputs, name)) for name in ("input_ids", "pixel_values", "prefix_length")}
        p, q = (log_softmax(np.array(model(**arrays))[0, :-1][suffix[1:]]) for model in (reference.model, other.model))
        expected += list((np.exp(p) * (p - q)).sum(-1))
    assert mean_divergence(reference, other) == pytest.approx(np.mean(expected), rel=1e-3)


def log_softmax(scores):
    scores = scores.astype(np.float64)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def test_more_bits_diverge_less_and_take_more_bytes(reference):
    names = ("8-bit", "5-bit", "3-bit")
    models = [quantise(read_checkpoint(bundled_checkpoint()), read_recipe(name), "float32") for name in names]
    found = [mean_divergence(reference, asker(each.model, reference.processor)) for each in models]
    assert 0 < found[0] < found[1] < found[2]
    assert models[0].nbytes > models[1].nbytes > models[2].nbytes


@pytest.mark.parametrize("name", ["4-bit", "nvfp4", "4-bit:32+vision"])
def test_a_model_in_memory_is_the_one_that_convert_writes(reference, tmp_path, name):
    recipe = read_recipe(name)
    convert(None, tmp_path / "q", recipe=recipe)
    made = quantise(read_checkpoint(bundled_checkpoint()), recipe, "float32")
    written = read_checkpoint(tmp_path / "q")
    assert made.nbytes == sum(info.nbytes for info in written.tensors.values())
    packed = load(tmp_path / "q", dtype="float32")[0]
    inputs = as_mlx(reference.processor([PICTURE], [PROMPTS[1]]))
    wanted, found, whole = (np.array(model(**inputs)) for model in (packed, made.model, reference.model))
    assert abs(found - wanted).max() / abs(wanted).max() < SMALL_MODEL < abs(whole - wanted).max() / abs(wanted).max()


def test_a_recipe_that_changes_nothing_differs_in_nothing(reference, monkeypatch):
    """It is asked the same prompts about the same scenes."""
    monkeypatch.setattr(evaluate, "quantise", lambda *arguments: Quantised(reference.model, 1))
    found = evaluate.evaluate(Setup({"none": Recipe(8)}, prompts=1), lambda doing: None)
    (row,) = found.recipes
    assert (found.against, found.prompts, row.divergence) == ("truth", 9, 0.0)
    assert row.figures == found.unquantised.figures
    assert row.figures.keys() == FLOORS.keys()


def test_at_most_two_models_are_in_memory(monkeypatch):
    held = []

    def watched(*arguments):
        held.append(mx.get_active_memory())
        return quantise(*arguments)

    monkeypatch.setattr(evaluate, "quantise", watched)
    setup = Setup(read_recipes("8-bit,8-bit:32,6-bit"), pictures=[PICTURE], questions=["ocr"])
    evaluate.evaluate(setup, lambda doing: None)
    assert len(held) == 3
    assert max(held) < 1.1 * held[0]  # the unquantised model, and what it keeps of pictures


def test_a_model_that_does_not_fit_beside_the_other_is_refused(monkeypatch):
    monkeypatch.setattr(quantised, "free_bytes", lambda: 10**6)
    with pytest.raises(TooLargeError, match="are free"):
        quantise(read_checkpoint(bundled_checkpoint()), Recipe(4), "float32")


def test_a_model_agrees_with_itself(reference):
    values = agreement(reference.batches, reference.batches, reference.processor.decode_masks)
    assert {name: set(found) for name, found in values.items()} == {"same text": {1.0}, "box IoU": {1.0}, "mask IoU": {1.0}}


def test_boxes_are_paired_by_label_and_overlap_whatever_their_order():
    a, b, c = "<loc0000><loc0000><loc0512><loc0512>", "<loc0512><loc0512><loc1023><loc1023>", "<loc0000><loc0000><loc0512><loc0256>"
    assert overlaps(f"{a} cat ; {b} cat", f"{b} cat ; {a} cat") == [1.0, 1.0]
    assert overlaps(f"{a} cat", f"{c} cat") == [pytest.approx(0.5)]
    assert overlaps(f"{a} cat ; {b} dog", f"{a} dog ; {b} cat") == [0.0, 0.0]


def test_a_box_that_one_of_both_lacks_counts_as_nothing():
    a = "<loc0000><loc0000><loc0512><loc0512>"
    assert overlaps(f"{a} cat", "") == [0.0]
    assert overlaps("", f"{a} cat") == [0.0]
    assert overlaps(f"{a} cat", f"{a} cat ; {a} cat") == [1.0, 0.0]
    assert overlaps("", "") == []


def test_masks_are_compared_and_a_missing_one_counts_as_nothing(reference):
    answer = next(answer for answer in reference.batches[0].answers if "<seg" in answer.text)
    text = answer.text
    without = text[: text.index("<seg")] + " heart"
    ours = [Batch((), (), (Answer(text, (), answer.width, answer.height),))]
    theirs = [Batch((), (), (Answer(without, (), answer.width, answer.height),))]
    decode = reference.processor.decode_masks
    assert agreement(ours, ours, decode)["mask IoU"] == [1.0]
    found = agreement(ours, theirs, decode)
    assert found == {"same text": [0.0], "box IoU": [1.0], "mask IoU": [0.0]}


def test_the_pairing_takes_the_largest_overlaps_first():
    near, far = Detection("cat", BOX), Detection("cat", (40.0, 40.0, 90.0, 90.0))
    assert matched([far, near], [near]) == [(far, None), (near, near)]


def test_two_masks_overlap_by_their_share():
    left = np.array([[True, True, False, False]])
    assert mask_iou(left, np.array([[False, True, True, False]])) == pytest.approx(1 / 3)
    assert mask_iou(~left & left, ~left & left) == 1.0


def test_a_difference_has_the_error_of_pairs():
    figure = Figure.of([1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0])
    assert (figure.value, figure.count, figure.difference) == (0.75, 4, -25.0)
    assert figure.standard_error == pytest.approx(25.0)
    assert Figure.of([1.0], [1.0]).standard_error is None


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("8-bit", Recipe(8)),
        ("3-bit:128", Recipe(3, 128)),
        ("mixed_3_6", Recipe(mixed="mixed_3_6")),
        ("nvfp4", Recipe(mode="nvfp4")),
        ("4-bit:32+vision", Recipe(4, 32, vision=True)),
    ],
)
def test_a_short_name_says_a_recipe(name, recipe):
    assert read_recipe(name) == recipe


def test_recipes_are_listed_with_commas():
    assert list(read_recipes(" 8-bit, mxfp4")) == ["8-bit", "mxfp4"]
    assert tuple(read_recipes(None)) == DEFAULT


@pytest.mark.parametrize("name", ["7-bit", "4bit", "affine", "mixed_2_9", "4-bit:33", "mxfp4:64", "4-bit+text", ""])
def test_a_recipe_that_cannot_be_is_refused_by_its_name(name):
    with pytest.raises(OptionError, match="recipe") as error:
        read_recipes(name) if not name else read_recipe(name)
    assert name in str(error.value)


def test_the_program_prints_a_table_and_ends_with_one_json_line(run, monkeypatch):
    monkeypatch.setattr(accuracy, "TASKS", ("color",))  # and numbers
    code, out, err = run("-n", 1, "--recipes", "3-bit")
    assert (code, err) == (0, "")
    *table, last = out.strip().splitlines()
    data = json.loads(last)
    assert (data["model"], [row["name"] for row in data["recipes"]]) == ("bundled demo", ["3-bit"])
    assert data["recipes"][0]["divergence"] > data["unquantised"]["divergence"] == 0
    assert all(any(line.split()[:1] == [name] for line in table) for name in ("unquantised", "3-bit"))
    assert any(line.split()[-2:] == ["color", "number"] for line in table)


def test_other_pictures_are_compared_with_the_unquantised_answers(run):
    arguments = ["--image", PICTURE, "--json", "--recipes", "8-bit", "-p", PROMPTS[0], "-p", PROMPTS[2]]
    code, out, err = run("--model", bundled_checkpoint(), "--dtype", "float32", *arguments)
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert (data["against"], data["prompts"]) == ("unquantised", 2)
    figures = data["recipes"][0]["figures"]
    assert {name: figure["count"] for name, figure in figures.items()} == {"same text": 2, "box IoU": 1, "mask IoU": 1}
    assert figures["box IoU"]["value"] > 0.9
    assert all(each["difference"] == pytest.approx(100 * (each["value"] - 1)) for each in figures.values())


def test_answers_without_boxes_have_no_figures_about_them(run):
    code, out, _ = run("--image", PICTURE, "--recipes", "8-bit", "-p", PROMPTS[0])
    assert code == 0
    assert json.loads(out.splitlines()[-1])["unquantised"]["figures"].keys() == {"same text"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--recipes", "5bits"], 2, ["5bits", "N-bit"]),
        (["--image", "none.jpg", "-p", "caption en"], 1, ["none.jpg"]),
        (["--image", "https://example.com/a.jpg", "-p", "caption en"], 1, ["example.com", "give a file"]),
        (["--image", PICTURE], 2, ["--prompt"]),
        (["-p", "caption en"], 2, ["--image"]),
        (["--model", bundled_checkpoint()], 2, ["--model", "--image"]),
        (["--model", "no/such/folder", "--image", PICTURE, "-p", "ocr"], 1, ["no/such/folder"]),
    ],
)
def test_what_cannot_be_is_said_in_one_line(run, arguments, code, words):
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    one_line(err, *words)


def test_a_quantised_checkpoint_has_nothing_to_be_compared_with(run, tmp_path):
    convert(None, tmp_path / "q", recipe=Recipe(4))
    code, _, err = run("--model", tmp_path / "q", "--image", PICTURE, "-p", "ocr")
    assert code == 2
    one_line(err, "quantised already", "nothing to compare with")


def test_a_checkpoint_whose_columns_no_group_fills_is_refused(run, tmp_path):
    code, _, err = run("--model", checkpoints.write(tmp_path / "tiny"), "--image", PICTURE, "-p", "ocr")
    assert code == 2
    one_line(err, "groups of 64")
