"""`mlx-paligemma parity`: what it passes, what it fails and blames, and what it leaves behind."""

import json
import re
import sys

import mlx.core as mx
import pytest
from parity.planted_faults import faults, input_faults
from parity.tiny_models import config_json, write_pair
from program import PICTURE, one_line, program

from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.errors import BackendError
from mlx_paligemma.common.image import open_image
from mlx_paligemma.common.tokenizer import PaliGemmaTokenizer
from mlx_paligemma.common.tokenizer_files import tokenizer_files
from mlx_paligemma.model import siglip
from mlx_paligemma.parity import end_to_end, scenes, torch_reference
from mlx_paligemma.parity.call_store import CallStore
from mlx_paligemma.parity.comparison import compare_backends
from mlx_paligemma.parity.input_check import InputCheck
from mlx_paligemma.parity.origin import Question
from mlx_paligemma.parity.replay import Replayer
from mlx_paligemma.parity.transformers_reference import check_version

QUESTION = ("-p", "detect cat", "-m", 6)
CONFIG = config_json(2, num_hidden_layers=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny PaliGemma 2 with random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    write_pair(folder, CONFIG)
    return folder


@pytest.fixture(scope="module")
def plain(folder):
    """What JSON shows of a comparison with nothing special."""
    picture = open_image(PICTURE)
    return compare_backends(Question((picture,), (PICTURE,), "detect cat", str(folder), max_tokens=6)).as_dict()


@pytest.fixture
def run(monkeypatch, capfd):
    return program(monkeypatch, capfd)


@pytest.fixture
def report(run, folder):
    """Run the command on the tiny model with more arguments: (exit code, its JSON)."""

    def call(*arguments):
        code, out, _ = run("parity", "--model", folder, *QUESTION, "--json", *arguments)
        return code, json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))

    return call


def plant(monkeypatch, name):
    """One of the faults that need no model to be planted in; the module that is to blame."""
    fault = next(fault for fault in [*faults(), *input_faults()] if fault.name == name)
    fault.plant(monkeypatch, None)
    return fault.blamed


def test_the_bundled_demo_passes_and_the_table_says_so(run):
    code, out, err = run("parity", "-m", 2, "--no-batch")
    assert code == 0 and err == ""
    assert "verdict: pass" in out and "0 beyond their budget" in out and "mask_codec" in out


def test_the_json_is_the_contract(plain):
    assert plain["verdict"] == "pass" and plain["first_failure"] is None
    assert {"name", "shape", "dtype", "relative_error", "max_abs_error", "cosine"} <= plain["modules"][0].keys()
    assert {"max_abs_error", "relative_error", "cosine", "top1_agreement"} <= plain["logits"].keys()
    assert len(plain["greedy"]["tokens"]) == 6 and plain["greedy"]["first_divergence"] is None
    assert plain["greedy"]["tokens"] == plain["greedy"]["reference_tokens"]


def test_modules_stand_in_the_order_of_the_model_and_none_is_missing(plain):
    names = [module["name"] for module in plain["modules"]]
    order = [
        *("processor", "vision_tower.embeddings.patch_embedding", "vision_tower", "multi_modal_projector", "embed"),
        *("language_model.layers.0.self_attn", "language_model.layers.1", "language_model.norm", "mask", "logits", "model"),
        *("cache", "positions", "decode"),
    ]
    assert [name for name in names if name in order] == order
    assert sum(name.startswith("language_model.layers.") for name in names) == 2 * 15


def test_every_layer_has_its_drift(plain):
    assert [drift["name"] for drift in plain["drift"]][-3:] == [
        f"language_model.{name}" for name in ("layers.0", "layers.1", "norm")
    ]
    assert len(plain["drift"]) == 3 + 2 + 1 + 3
    assert all(0 < drift["relative_error"] < 1e-5 for drift in plain["drift"])


def test_bfloat16_passes_within_its_budget_and_is_far_from_float32(report, plain):
    code, data = report("--dtype", "bfloat16")
    assert code == 0 and {module["dtype"] for module in data["modules"]} == {"bfloat16", ""}  # masks and token ids have none
    assert data["logits"]["relative_error"] > 1000 * plain["logits"]["relative_error"]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("float32", "attention scores capped after the mask"),
        ("float32", "cache written one column early"),
        ("float32", "decoded tokens one position late"),
        ("float32", "newline missing"),
        ("bfloat16", "gate and up exchanged"),
        ("bfloat16", "causal prefix"),
    ],
)
def test_a_planted_fault_fails_and_its_module_is_blamed(report, monkeypatch, name, dtype):
    blamed = plant(monkeypatch, name)
    code, data = report("--dtype", dtype)
    assert (code, data["verdict"], data["first_failure"]) == (1, "fail", blamed)


def test_transformers_is_a_reference_too(report, monkeypatch):
    code, data = report("--against", "transformers")
    assert code == 0 and len(data["modules"]) > 60 and data["decoding"]["relative_error"] < 1e-5
    blamed = plant(monkeypatch, "gate and up exchanged")
    assert report("--against", "transformers")[1]["first_failure"] == blamed


def test_transformers_finds_a_wrong_mask(report, monkeypatch):
    blamed = plant(monkeypatch, "causal prefix")
    assert report("--against", "transformers", "--no-batch")[1]["first_failure"] == blamed == "mask"


def test_nan_is_named_first_with_what_the_module_was_given(report, monkeypatch):
    plant(monkeypatch, "RMS norms with w for 1 + w")
    call = siglip.SiglipEncoder.__call__
    monkeypatch.setattr(siglip.SiglipEncoder, "__call__", lambda self, x: mx.where(x > 0.5, mx.nan, call(self, x)))
    code, data = report()
    assert (code, data["first_failure"]) == (1, "vision_tower.encoder")
    given = data["not_finite"]["input"]
    assert given["smallest"] < given["mean"] < given["largest"] and given["not_finite"] == 0
    assert "finite" in data["greedy"]["problem"]


def test_the_page_holds_every_module_and_loads_nothing(run, folder, tmp_path):
    page = tmp_path / "report.html"
    code, out, _ = run("parity", "--model", folder, *QUESTION, "--html", page, "--bless", tmp_path / "run.json")
    text, data = page.read_text(), json.loads((tmp_path / "run.json").read_text())
    assert code == 0 and "verdict: pass" in out
    for module in data["modules"]:
        assert text.count(f"<td>{module['name']}</td>") == 1
        assert text.count(f'title="{module["name"]}: ') == 4  # metrics of the heat map
    assert not re.search(r"https?:|src=|@import|url\(|<link", text)
    assert all(value in text for value in data["origin"]["hashes"].values())


def test_a_stored_run_shows_what_moved(run, folder, tmp_path, monkeypatch):
    kept = tmp_path / "run.json"
    arguments = ("parity", "--model", folder, *QUESTION, "--compare", kept)
    one_line(run(*arguments)[2], "--bless")
    assert run(*arguments[:-2], "--bless", kept)[0] == 0
    assert "nothing has moved" in run(*arguments)[1]
    plant(monkeypatch, "gate and up exchanged")
    out = run(*arguments)[1]
    assert "module language_model.layers.0.mlp: relative error" in out
    assert "module language_model.layers.0.mlp.gate_proj" not in out
    one_line(run(*arguments, "--dtype", "bfloat16")[2], "dtype", "same question")


def test_two_checkpoints_that_are_not_the_same_model_are_refused(run, folder, tmp_path):
    write_pair(tmp_path, config_json(2, num_hidden_layers=3))
    code, _, err = run("parity", "--model", folder, "--reference", tmp_path, *QUESTION)
    assert code == 1
    one_line(err, "not the same model", "num_hidden_layers is 2")


def test_other_weights_of_the_same_model_fail_at_the_first_module(report, tmp_path):
    write_pair(tmp_path, CONFIG, seed=1)
    code, data = report("--reference", tmp_path)
    assert (code, data["first_failure"]) == (1, "vision_tower.embeddings.patch_embedding")


def test_an_interrupted_run_keeps_what_there_was(run, folder, tmp_path, monkeypatch):
    compare, done = Replayer.compare, []

    def interrupted(self, call):
        if len(done) == 20:
            raise KeyboardInterrupt
        done.append(call.name)
        return compare(self, call)

    monkeypatch.setattr(Replayer, "compare", interrupted)
    code, out, err = run("parity", "--model", folder, *QUESTION, "--json", "--html", tmp_path / "report.html")
    data = json.loads(out)
    assert code == 130 and data["verdict"] == "interrupted"
    assert {module["name"] for module in data["modules"]} == {"processor", *done} and data["logits"] is None
    one_line(err, "interrupted")
    assert "interrupted" in (tmp_path / "report.html").read_text()


def test_logits_too_many_for_memory_are_made_in_pieces_with_the_same_result(report, plain, monkeypatch):
    monkeypatch.setattr(scenes, "WHOLE_LIMIT", 0)
    for module in (end_to_end, torch_reference):
        monkeypatch.setattr(module, "PIECE", 7)
    code, data = report()
    assert code == 0 and data["logits"]["positions"] == plain["logits"]["positions"]
    assert data["logits"]["margin"] == pytest.approx(plain["logits"]["margin"])


def test_one_row_alone_has_no_padding_and_half_the_rows(report):
    code, data = report("--no-batch")
    shapes = {module["name"]: module["shape"] for module in data["modules"]}
    assert code == 0 and shapes["language_model"][0] == 1


def test_a_missing_reference_says_what_to_install(run, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, _, err = run("parity", "--model", folder, "--against", "transformers", *QUESTION)
    assert code == 1
    one_line(err, "pip install 'transformers")


def test_versions_of_transformers_with_known_faults_are_refused_by_number():
    check_version("5.23.0")
    for version, words in (("4.41.0", "suffix"), ("4.48.0", "padding"), ("4.56.2", "flag"), ("5.3.0", "sqrt")):
        with pytest.raises(BackendError, match=rf"transformers {version}.*{words}.*pip install"):
            check_version(version)


def test_a_full_disk_names_its_place_and_what_helps(run, folder, monkeypatch):
    def full(self, rest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CallStore, "_write", full)
    code, _, err = run("parity", "--model", folder, *QUESTION)
    assert code == 1
    one_line(err, "No space left", "TMPDIR")


def test_a_reference_out_of_memory_says_what_shrinks_it(run, folder, monkeypatch):
    def too_large(self, scenes, sink):
        from mlx_paligemma.parity.torch_reference import memory_errors

        with memory_errors():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("mlx_paligemma.parity.torch_reference.TorchReference.record", too_large)
    code, _, err = run("parity", "--model", folder, *QUESTION)
    assert code == 1
    one_line(err, "out of memory", "--no-batch")


def test_a_vocabulary_in_another_file_does_not_keep_from_comparing(tmp_path):
    """As in folders that have only tokenizer.json, and beside an npz."""
    folder = write_pair(tmp_path / "pair", config_json(1)).folder
    vocabulary = (folder / "tokenizer.model").read_bytes()
    wanted = InputCheck(folder, PaliGemmaConfig.from_folder(folder)).pieces.encode("detect cat")
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.json").write_bytes(tokenizer_files(vocabulary, tokenizer_size(vocabulary))["tokenizer.json"])
    assert InputCheck(folder, PaliGemmaConfig.from_folder(folder)).pieces.encode("detect cat") == wanted


def tokenizer_size(model: bytes) -> int:
    return PaliGemmaTokenizer(model).size
