"""The command line: what it prints where, how it ends, and that nothing a user does gives a traceback."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from program import PICTURE, one_line, program
from safetensors.numpy import load_file, save_file

from mlx_paligemma import generation
from mlx_paligemma.common.hub import bundled_checkpoint
from mlx_paligemma.common.results import Detections, GenerationResult, Stats
from mlx_paligemma.common.video import Frame


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the program in this process: (exit code, stdout, stderr)."""
    return program(monkeypatch, capfd)


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the demo checkpoint, to be damaged."""
    return Path(shutil.copytree(bundled_checkpoint(), tmp_path / "checkpoint"))


def change_config(folder, **changes):
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | changes))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_the_answer_is_all_that_stands_on_stdout(run):
    code, out, err = run("generate", PICTURE, "-p", "caption en")
    assert code == 0
    assert out.count("\n") == 1
    assert out.strip()
    assert err == ""


def test_verbose_adds_the_cost_on_stderr_alone(run):
    plain = run("generate", PICTURE, "-p", "caption en")[1]
    _, out, err = run("generate", PICTURE, "-p", "caption en", "-v")
    assert out == plain
    one_line(err, "Prompt: 68 tokens", "first answer token after", "tokens/s", "Peak memory")


@pytest.mark.parametrize(
    ("prompt", "pictures", "words"),
    [("star " * 9000, 1, "context holds"), ("detect star", 200, "context holds"), (" ", 1, "the prompt is empty")],
)
def test_a_prompt_that_cannot_be_answered_is_refused_before_the_weights_are_read(run, monkeypatch, prompt, pictures, words):
    monkeypatch.setattr("mlx_paligemma.weights.load_model", lambda *_: pytest.fail("the weights were read"))
    code, out, err = run("generate", *["--image", PICTURE] * pictures, "-p", prompt)
    assert (code, out) == (1, "")
    one_line(err, words)


def test_verbose_says_what_each_of_several_answers_cost(run, tmp_path):
    copy = shutil.copy(PICTURE, tmp_path / "copy.png")
    err = run("generate", PICTURE, copy, "-p", "caption en", "-v", "--batch-size", 2)[2]
    assert [line.split(": Prompt: 68 tokens")[0] for line in err.splitlines()] == [PICTURE, str(copy)]


def test_both_backends_print_the_same_answer(run):
    arguments = ("generate", PICTURE, "-p", "detect star", "--json")
    answers = [json.loads(run(*arguments, "--backend", name)[1]) for name in ("mlx", "torch")]
    assert answers[0]["token_ids"] == answers[1]["token_ids"]
    (one,), (other,) = (answer["detections"] for answer in answers)
    assert (one["label"], one["box"]) == (other["label"], other["box"])
    assert one["score"] == pytest.approx(other["score"], rel=1e-4)


def test_json_has_the_fields_of_the_contract_and_no_nan(run):
    _, out, _ = run("generate", PICTURE, "-p", "segment heart", "--json")
    record = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert list(record) == [
        "image", "width", "height", "prompt", "text", "token_ids", "finish_reason", "detections", "stats",
    ]  # fmt: skip
    assert set(record["stats"]) == {
        "prompt_tokens", "generation_tokens", "time_to_first_token_s", "generation_tps", "peak_memory_bytes", "grammar_changes",
    }  # fmt: skip
    for detection in record["detections"]:
        assert list(detection) == ["label", "box", "score", "mask"]


def test_a_mask_in_json_is_a_run_length_code_of_the_whole_picture(run):
    from pycocotools import mask as coco

    record = json.loads(run("generate", PICTURE, "-p", "segment heart", "--json")[1])
    (detection,) = record["detections"]
    mask = coco.decode(detection["mask"]).astype(bool)
    width, height = Image.open(PICTURE).size
    assert mask.shape == (height, width)
    rows, columns = np.nonzero(mask)
    x0, y0, x1, y1 = detection["box"]
    assert x0 - 1 <= columns.min() and columns.max() <= x1 + 1 and y0 - 1 <= rows.min() and rows.max() <= y1 + 1
    assert 0.3 < mask.sum() / ((x1 - x0) * (y1 - y0)) < 0.95


def test_each_of_several_pictures_gets_a_named_answer(run, tmp_path):
    other = tmp_path / "other.png"
    Image.open(PICTURE).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other)
    _, out, _ = run("generate", PICTURE, other, "-p", "caption en")
    first, second = out.splitlines()
    assert first.startswith(f"{PICTURE}: ")
    assert second.startswith(f"{other}: ")


def test_a_batch_gives_the_answers_of_single_runs(run, tmp_path):
    paths = [tmp_path / f"{angle}.png" for angle in (0, 90, 180)]
    for path in paths:
        Image.open(PICTURE).rotate(int(path.stem), expand=True).save(path)
    arguments = ("generate", *paths, "-p", "caption en")
    assert run(*arguments, "--batch-size", 3)[1] == run(*arguments)[1]


def test_image_flags_make_one_answer_about_all_pictures(run):
    _, out, _ = run("generate", "--image", PICTURE, "--image", PICTURE, "-p", "caption en", "--json", "-m", 5)
    assert json.loads(out)["stats"]["prompt_tokens"] == 2 * 64 + 4


def test_a_video_is_one_answer_about_its_frames(run, monkeypatch):
    def frames(path, count):
        assert path == "clip.mp4"
        return [Frame(Image.open(PICTURE), float(second)) for second in range(count)]

    monkeypatch.setattr("mlx_paligemma.common.video.video_frames", frames)
    code, out, _ = run("generate", "--video", "clip.mp4", "--frames", 3, "-p", "caption en", "--json", "-m", 5)
    record = json.loads(out)
    assert code == 0
    assert record["image"] == "clip.mp4"
    assert record["stats"]["prompt_tokens"] == 3 * 64 + 4


def test_a_video_that_cannot_be_read_is_one_line_and_exit_1(run):
    code, out, err = run("generate", "--video", "missing.mp4", "-p", "caption en")
    assert code == 1
    assert out == ""
    one_line(err, "missing.mp4")


def test_logprobs_are_one_number_per_token(run):
    record = json.loads(run("generate", PICTURE, "-p", "caption en", "--json", "--logprobs")[1])
    assert len(record["token_logprobs"]) == len(record["token_ids"])
    assert all(value <= 0 for value in record["token_logprobs"])


def test_min_score_leaves_objects_out(run):
    arguments = ("generate", PICTURE, "-p", "detect star ; heart", "--json")
    scores = [found["score"] for found in json.loads(run(*arguments)[1])["detections"]]
    limit = (min(scores) + max(scores)) / 2
    kept = [found["score"] for found in json.loads(run(*arguments, "--min-score", limit)[1])["detections"]]
    assert kept == [score for score in scores if score >= limit]
    assert len(kept) < len(scores)


def test_no_grammar_gives_the_model_a_free_hand(run):
    arguments = ("generate", PICTURE, "-p", "detect star", "--json", "--temp", "30", "--seed", "1", "-m", "20")
    held, free = (json.loads(run(*arguments, *flags)[1]) for flags in ((), ("--no-grammar",)))
    assert held["stats"]["grammar_changes"] > 0
    assert free["stats"]["grammar_changes"] == 0
    assert free["text"] != held["text"]


def test_masks_are_saved_as_pictures(run, tmp_path):
    code, out, _ = run("generate", PICTURE, "-p", "segment star ; heart", "--json", "--masks", tmp_path / "masks")
    assert code == 0
    labels = [found["label"] for found in json.loads(out)["detections"]]
    names = [f"shapes-{number}-{label}.png" for number, label in enumerate(labels, 1)]
    assert len(names) == 2
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == sorted(names)
    assert Image.open(tmp_path / "masks" / names[0]).size == Image.open(PICTURE).size


def test_masks_never_come_among_the_pictures(run, tmp_path):
    shutil.copy(PICTURE, tmp_path / "mine.png")
    code, _, err = run("generate", tmp_path, "-p", "segment star", "--masks", tmp_path)
    assert code == 2
    one_line(err, "--masks", "choose another folder")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_note_is_shown_once_per_run(run, monkeypatch):
    stats, found = Stats(1, 1, None, None, 0), Detections((), 1, 1)

    class Noting:
        def __init__(self, _network, _processor, rows, _prompts, **_options):
            self.rows = rows

        def __iter__(self):
            return iter(())

        def results(self):
            return [GenerationResult("x", [1], "stop", stats, found, notes=("masks are missing",)) for _ in self.rows]

    monkeypatch.setattr(generation, "start", Noting)
    _, out, err = run("generate", PICTURE, PICTURE, PICTURE, "-p", "segment star", "--batch-size", 2)
    assert out.count("\n") == 3
    one_line(err, "note: masks are missing")


def test_a_broken_picture_among_good_ones_costs_only_its_own_answer(run, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(Path(PICTURE).read_bytes()[:500])
    code, out, err = run("generate", bad, PICTURE, "-p", "caption en", "--json", "--batch-size", 2)
    broken, good = map(json.loads, out.splitlines())
    assert code == 1
    assert str(bad) in broken["error"]
    assert good["text"]
    one_line(err, str(bad))


def test_output_is_drawn_to_a_file_or_into_a_folder(run, tmp_path):
    assert run("generate", PICTURE, "-p", "detect star", "-o", tmp_path / "one.png")[0] == 0
    assert Image.open(tmp_path / "one.png").size == Image.open(PICTURE).size
    assert run("generate", PICTURE, PICTURE, "-p", "detect star", "-o", tmp_path / "many")[0] == 0
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == ["shapes-2.png", "shapes.png"]


def test_output_never_overwrites_an_input(run, tmp_path):
    picture = Path(shutil.copy(PICTURE, tmp_path / "mine.png"))
    before = picture.read_bytes()
    for place in (picture, tmp_path):
        code, _, err = run("generate", picture, "-p", "detect star", "-o", place)
        assert code == 2
        one_line(err, "overwrite", "mine.png")
    assert picture.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("missing.png", "-p", "caption en"), ("missing.png", "no such file")),
        ((str(Path(__file__).parent), "-p", "caption en"), ("tests", "folder without pictures")),
        (("tests/**/*.jpg", "-p", "caption en"), ("tests/**/*.jpg", "fits no file")),
        ((__file__, "-p", "caption en"), ("test_cli.py", "not a picture")),
        ((PICTURE, "-p", ""), ("prompt is empty",)),
        ((PICTURE, "-p", "x " * 3000), ("tokens", "shorten")),
        ((PICTURE, "-p", "x", "--model", "nowhere"), ("nowhere", "no such folder")),
        ((PICTURE, "-p", "x", "--model", __file__), ("test_cli.py", "is a file")),
        ((PICTURE, "-p", "x", "--model", str(Path(__file__).parent)), ("no config.json",)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_one_line_on_stderr_and_exit_1(run, arguments, words):
    code, out, err = run("generate", *arguments)
    assert code == 1
    assert out == ""
    one_line(err, *words)


@pytest.mark.parametrize(
    "flags",
    [
        ("--max-tokens", "0"), ("--max-tokens", "-3"), ("--max-tokens", "many"), ("--temp", "-1"), ("--temp", "nan"),
        ("--top-p", "1.5"), ("--top-p", "0"), ("--min-p", "2"), ("--top-k", "-1"), ("--seed", "-1"), ("--backend", "jax"),
        ("--dtype", "float64"), ("--batch-size", "0"), ("--image", "x.png"), ("-o", "picture.xyz"), ("--nonsense", "1"),
        ("--video", "x.mp4"), ("--frames", "0"), ("--min-score", "2"), ("--format", "xml", "-o", "x"), ("--masks", __file__),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_bad_flag_value_is_exit_2(run, flags):
    code, out, err = run("generate", PICTURE, "-p", "caption en", *flags)
    assert code == 2
    assert out == ""
    assert err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--format", "json"), ("--format json", "add -o")),
        (("--resume",), ("--resume", "--format")),
        (("--format", "csv", "-o", "mlx_paligemma"), ("mlx_paligemma", "writes a file")),
        (("--format", "yolo", "-o", __file__), ("test_cli.py", "writes a folder")),
        (("--format", "csv", "-o", __file__), ("test_cli.py", "holds results already", "--resume")),
        (("--format", "json", "--resume", "-o", __file__), ("line 1 of", "test_cli.py", "not one of this program's answers")),
        (("--format", "csv", "--resume", "-o", __file__), ("test_cli.py.jsonl is missing",)),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_place_for_results_that_would_lose_something_is_refused_in_one_line(run, flags, words):
    before = Path(__file__).read_bytes()
    code, out, err = run("generate", PICTURE, "-p", "caption en", *flags)
    assert code == 2
    assert out == ""
    one_line(err, *words)
    assert Path(__file__).read_bytes() == before


def test_temp_and_temperature_are_the_same_flag(run):
    arguments = ("generate", PICTURE, "-p", "caption en", "--seed", "7", "-m", "20")
    assert run(*arguments, "--temp", "2")[1] == run(*arguments, "--temperature", "2")[1]


def test_an_unknown_model_type_names_the_folder(run, checkpoint):
    change_config(checkpoint, model_type="llava")
    code, _, err = run("generate", PICTURE, "-p", "x", "--model", checkpoint)
    assert code == 1
    one_line(err, str(checkpoint), "llava")


def test_a_missing_shard_is_named(run, checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    code, _, err = run("generate", PICTURE, "-p", "x", "--model", checkpoint)
    assert code == 1
    one_line(err, "model-00002-of-00002.safetensors", "missing")


def test_a_tensor_of_another_shape_is_named(run, checkpoint):
    change_tensors(checkpoint, lambda tensors: tensors.update({"language_model.model.norm.weight": np.zeros(64, np.float16)}))
    code, _, err = run("generate", PICTURE, "-p", "x", "--model", checkpoint)
    assert code == 1
    one_line(err, "language_model.model.norm.weight", "(64,)")


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_nan_scores_end_in_an_error_not_in_garbage(run, checkpoint, backend):
    change_tensors(checkpoint, lambda tensors: tensors["language_model.model.norm.weight"].fill(np.nan))
    code, out, err = run("generate", PICTURE, "-p", "caption en", "--model", checkpoint, "--backend", backend)
    assert code == 1
    assert out.strip() == ""
    one_line(err, "not finite")


def test_without_torch_the_torch_backend_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("torch_ref")]:
        monkeypatch.delitem(sys.modules, name)
    code, _, err = run("generate", PICTURE, "-p", "x", "--backend", "torch")
    assert code == 1
    one_line(err, "pip install 'mlx-paligemma[torch]'")


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interruption_keeps_the_partial_answer_and_exits_130(run, monkeypatch, as_json):
    real = generation.steps_of

    def interrupted(*arguments):
        for count, tokens in enumerate(real(*arguments)):
            if count == 3:
                raise KeyboardInterrupt
            yield tokens

    whole = json.loads(run("generate", PICTURE, "-p", "caption en", "--json")[1])
    monkeypatch.setattr(generation, "steps_of", interrupted)
    code, out, err = run("generate", PICTURE, "-p", "caption en", *(["--json"] if as_json else []))
    assert code == 130
    one_line(err, "interrupted")
    if as_json:
        assert json.loads(out)["token_ids"] == whole["token_ids"][:3]
        assert json.loads(out)["finish_reason"] == "cancelled"
    else:
        assert out.strip()
        assert whole["text"].startswith(out.strip())


def test_a_real_ctrl_c_ends_the_process_with_130():
    flags = ["--temp", "20", "--max-tokens", "1900", "--seed", "1"]  # a long answer of nonsense
    command = [sys.executable, "-m", "mlx_paligemma", "generate", PICTURE, "-p", "caption en", *flags]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as process:
        assert process.stdout.read(1)  # the answer has begun
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().strip() == "error: interrupted"


def test_a_reader_that_goes_away_gives_no_traceback():
    command = f"{sys.executable} -m mlx_paligemma generate {PICTURE} {PICTURE} -p 'caption en' | head -c 5"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_the_module_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "mlx_paligemma", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __import__("mlx_paligemma").__version__


def test_drawing_spares_other_pictures_in_the_folder_of_the_input(run, tmp_path):
    Image.open(PICTURE).save(tmp_path / "x.jpg")
    shutil.copy(PICTURE, tmp_path / "x.png")
    before = (tmp_path / "x.png").read_bytes()
    code, _, err = run("generate", tmp_path / "x.jpg", "-p", "detect star", "-o", tmp_path)
    assert code == 2
    one_line(err, "folder of x.jpg")
    assert (tmp_path / "x.png").read_bytes() == before


def test_drawing_spares_the_input_under_another_name(run, tmp_path):
    shutil.copy(PICTURE, tmp_path / "a.png")
    (tmp_path / "b.png").hardlink_to(tmp_path / "a.png")
    assert run("generate", tmp_path / "a.png", "-p", "detect star", "-o", tmp_path / "b.png")[0] == 2


def test_an_empty_name_is_no_folder(run):
    code, _, err = run("generate", "", "-p", "caption en")
    assert code == 1
    one_line(err, "name is empty")
    code, _, err = run("generate", PICTURE, "-p", "caption en", "--model", "")
    assert code == 1
    one_line(err, "bundled demo")


def test_a_closed_standard_input_does_no_harm():
    command = f"{sys.executable} -m mlx_paligemma generate {PICTURE} -p 'caption en' <&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_a_name_that_the_terminal_cannot_show_does_not_end_a_run(tmp_path):
    shutil.copy(PICTURE, tmp_path / "ü.png")
    command = [sys.executable, "-m", "mlx_paligemma", "generate", tmp_path / "ü.png", PICTURE, "-p", "caption en"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 2


def test_an_answer_that_was_cut_off_says_so(run):
    code, out, err = run("generate", PICTURE, "-p", "detect star ; circle", "-m", 8, "--json")
    assert code == 0
    assert json.loads(out)["finish_reason"] == "length"
    one_line(err, "note:", "8 tokens", "--max-tokens")


def stored(folder) -> dict:
    return {name: array for path in folder.glob("*.safetensors") for name, array in load_file(path).items()}


def test_convert_quantises_the_demo_which_then_answers(run, tmp_path):
    target = tmp_path / "made"
    code, out, err = run("convert", "-q", "--mlx-path", target)
    assert (code, err) == (0, "")
    assert out.startswith(f"{target}: ") and out.endswith(" GB of weights, 4-bit, groups of 64, the rest float16\n")
    code, out, err = run("generate", PICTURE, "-p", "caption en", "--model", target, "--dtype", "float32")
    assert (code, err) == (0, "") and out.strip()
    answers = [run("generate", PICTURE, "-p", "detect star", "--model", target, "--backend", name, "--dtype", "float32")[1]
               for name in ("mlx", "torch")]  # fmt: skip
    assert answers[0] == answers[1] and "<loc" in answers[0]


@pytest.mark.parametrize(
    ("flags", "quantization"),
    [
        (("--q-bits", 3, "--q-group-size", 32), {"bits": 3, "group_size": 32, "mode": "affine"}),
        (("--q-mode", "nvfp4"), {"bits": 4, "group_size": 16, "mode": "nvfp4"}),
        (("--q-mode", "mxfp8", "--q-vision"), {"bits": 8, "group_size": 32, "mode": "mxfp8"}),
        (("--quant-predicate", "mixed_3_6", "--q-embedding-bits", 6), {"bits": 3, "group_size": 64, "mode": "affine"}),
    ],
    ids=str,
)
def test_convert_says_in_config_json_what_the_flags_asked_for(run, tmp_path, flags, quantization):
    assert run("convert", "-q", *flags, "-o", tmp_path / "made")[0] == 0
    said = json.loads((tmp_path / "made" / "config.json").read_text())["quantization"]
    assert said | quantization == said
    table = said.get("language_model.model.embed_tokens", said)
    assert table["bits"] == (6 if "--q-embedding-bits" in flags else 8)
    assert any(name.startswith("vision_tower") for name in stored(tmp_path / "made") if name.endswith(".scales")) == (
        "--q-vision" in flags
    )


def test_convert_to_hf_and_back_gives_every_number_again(run, tmp_path):
    assert run("convert", "-o", tmp_path / "mlx", "--max-shard-size", 0.001)[0] == 0
    assert len(list((tmp_path / "mlx").glob("model-*.safetensors"))) > 1
    assert run("convert", "--hf-path", tmp_path / "mlx", "-o", tmp_path / "hf", "--to", "hf")[0] == 0
    found, wanted = stored(tmp_path / "hf"), stored(bundled_checkpoint())
    assert found.keys() == wanted.keys() and all(np.array_equal(found[name], array) for name, array in wanted.items())


WISHES = {
    "bits without -q": (("--q-bits", 4), "add -q"),
    "vision without -q": (("--q-vision",), "add -q"),
    "a mode without -q": (("--q-mode", "mxfp4"), "add -q"),
    "a mixture without -q": (("--quant-predicate", "mixed_3_6"), "add -q"),
    "2 bits": (("-q", "--q-bits", 2), "--q-bits is 2"),
    "table of 0 bits": (("-q", "--q-embedding-bits", 0), "--q-embedding-bits is 0"),
    "groups of 16": (("-q", "--q-group-size", 16), "--q-group-size is 16"),
    "8 bits of mxfp4": (("-q", "--q-bits", 8, "--q-mode", "mxfp4"), "in mode mxfp4"),
    "mixed with bits": (("-q", "--q-bits", 8, "--quant-predicate", "mixed_3_6"), "says the bits itself"),
    "quantised for others": (("-q", "--to", "hf"), "--to hf is for other programs"),
}


@pytest.mark.parametrize(("flags", "words"), WISHES.values(), ids=WISHES)
def test_convert_refuses_a_wish_in_one_line_and_writes_nothing(run, tmp_path, flags, words):
    code, out, err = run("convert", *flags, "-o", tmp_path / "made")
    assert (code, out) == (2, "")
    one_line(err, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [("--q-mode", "int4"), ("--to", "gguf"), ("--dtype", "int8"), ("--max-shard-size", 0),
                                   ("--quant-predicate", "mixed_2_6"), ("--q-bits", "four")], ids=str)  # fmt: skip
def test_convert_refuses_a_choice_that_there_is_not(run, tmp_path, flags):
    code, out, _ = run("convert", "-q", *flags, "-o", tmp_path / "made")
    assert (code, out) == (2, "") and not list(tmp_path.iterdir())


def test_convert_says_in_one_line_why_a_folder_cannot_be_read_or_written(run, tmp_path, checkpoint):
    target = tmp_path / "made"
    code, _, err = run("convert", "--model", tmp_path / "nowhere", "-o", target)
    assert code == 1
    one_line(err, "nowhere")
    target.mkdir()
    (target / "mine").touch()
    code, _, err = run("convert", "-o", target)
    assert code == 1
    one_line(err, str(target), "--overwrite")
    change_tensors(checkpoint, lambda tensors: tensors["multi_modal_projector.linear.bias"].fill(np.nan))
    code, _, err = run("convert", "--model", checkpoint, "-o", target, "--check-finite", "--overwrite")
    assert code == 1
    one_line(err, "model.safetensors: multi_modal_projector.linear.bias holds NaN")
    assert [path.name for path in target.iterdir()] == ["mine"]


def test_convert_takes_a_quantised_folder_only_as_it_is_or_unpacked(run, tmp_path):
    assert run("convert", "-q", "-o", tmp_path / "packed")[0] == 0
    code, _, err = run("convert", "-q", "--q-bits", 8, "--model", tmp_path / "packed", "-o", tmp_path / "again")
    assert code == 2
    one_line(err, "quantised already", "--dequantize")
    assert run("convert", "-q", "--q-bits", 8, "-d", "--model", tmp_path / "packed", "-o", tmp_path / "again")[0] == 0
    code, out, _ = run("convert", "-d", "--dtype", "bfloat16", "--model", tmp_path / "packed", "-o", tmp_path / "whole")
    assert code == 0 and out.endswith(" GB of weights, bfloat16\n")
