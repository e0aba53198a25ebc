"""Whatever is wrong with a checkpoint or a target: one line that says so, nothing written, the source as it was."""

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import pytest
import torch
from checkpoints import BASE, ROWS, config_json, tensors, vocabulary, write
from packed_checkpoints import affine, of_mode, pack, text_alone, weights, write_packed
from packed_checkpoints import config_json as wide_json
from program import PICTURE, one_line, program
from safetensors.torch import load, save_file

from mlx_paligemma import converted_folder, tensor_reader
from mlx_paligemma.common import safetensors_files
from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.packed import Packing
from mlx_paligemma.common.safetensors_files import INDEX_NAME
from mlx_paligemma.common.tensors import expected_shapes

WEIGHTS = "model.safetensors"
SHARDS = tuple(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
NORM = "language_model.model.norm.weight"
LARGE = 10**9  # bytes
LONGEST_LINE = 700  # characters, paths of temporary folders among them


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the program in this process: (exit code, stdout, stderr)."""
    return program(monkeypatch, capfd)


def state(folder: Path) -> dict[str, tuple]:
    """Everything in it: kind, permissions and size, and the content or what a link says."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        is_small = path.is_file() and status.st_size < LARGE  # the others are holes
        said = str(path.readlink()) if path.is_symlink() else path.read_bytes() if is_small else b""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_size, status.st_mtime_ns, said)
    return found


def assert_refused(run, place: Path, source: Path, *words: str, flags: tuple = (), target: str = "made", code: int = 1) -> None:
    """The command ends with `code` and one line that holds `words`, and `place`, with the source in it, is as it was."""
    before = state(place)
    result, out, err = run("convert", "--model", source, "--mlx-path", place / target, *flags)
    assert (result, out) == (code, "")
    one_line(err, *words)
    assert len(err) < LONGEST_LINE and err[:-1].isprintable()
    assert state(place) == before


def change(file: Path, function) -> None:
    held = load(file.read_bytes())
    function(held)
    save_file(held, file)


def change_json(file: Path, function) -> None:
    data = json.loads(file.read_text())
    function(data)
    file.write_text(json.dumps(data))


def header(text: bytes, file: Path) -> None:
    file.write_bytes(struct.pack("<Q", len(text)) + text)


def in_its_place(path: Path, make) -> None:
    """Something else by the name of a file."""
    path.unlink()
    make(path)


# What lies in the folder

FILE = {  # fault of model.safetensors: what is done to it, and what the line says
    "cut in its header": (lambda file: os.truncate(file, 300), "is not a whole safetensors file", "copy it again"),
    "cut in its data": (lambda file: os.truncate(file, file.stat().st_size - 4000), "file not fully covered", "copy it again"),
    "empty": (lambda file: os.truncate(file, 0), "header too small", "copy it again"),
    "with bytes after its end": (lambda file: file.write_bytes(file.read_bytes() + b"more"), "not fully covered", "copy it again"),
    "with a header of 2 ** 60 bytes": (
        lambda file: file.write_bytes(struct.pack("<Q", 2**60) + file.read_bytes()[8:]), f"claims {2**60} bytes", "copy it again"),
    "with a header of 4 GB that is there": (
        lambda file: (file.write_bytes(struct.pack("<Q", 2**32)), os.truncate(file, 2**33)), f"claims {2**32} bytes"),
    "with a nesting without end": (lambda file: header(b'{"a":' + b"[" * 10**6, file), "recursion limit", "copy it again"),
    "with a shape of 2 ** 80 numbers": (
        lambda file: header(json.dumps({NORM: {"dtype": "F32", "shape": [2**40] * 2, "data_offsets": [0, 0]}}).encode(), file),
        "overflow", "copy it again"),
    "with a million axes": (
        lambda file: header(json.dumps({NORM: {"dtype": "F32", "shape": [0] * 10**6, "data_offsets": [0, 0]}}).encode(), file),
        f"{NORM} has 1000000 axes", "copy it again"),
    "a folder": (lambda file: in_its_place(file, Path.mkdir), "is not a file", "copy the file itself"),
    "a named pipe": (lambda file: in_its_place(file, os.mkfifo), "is not a file", "copy the file itself"),
    "a link to itself": (lambda file: in_its_place(file, lambda path: path.symlink_to(path)), "a link that leads to no file"),
    "a link to nothing": (lambda file: in_its_place(file, lambda path: path.symlink_to("gone")), "a link that leads to no file"),
    "a link to a folder": (lambda file: in_its_place(file, lambda path: path.symlink_to("..")), "is not a file", "copy"),
    "one of 99,999 shards": (
        lambda file: file.rename(file.parent / "model-00001-of-99999.safetensors"), "model-00002-of-99999", "is missing; copy"),
    "pickled": (lambda file: file.rename(file.with_suffix(".bin")), "pickled weights are not read", "save the model with"),
    "without a tensor": (lambda file: change(file, lambda held: held.pop(NORM)), "lacks language_model.norm.weight", "copy both"),
    "with one more tensor": (
        lambda file: change(file, lambda held: held.update({"a.b": torch.zeros(2)})), WEIGHTS, "has unknown a.b", "copy both"),
    "with a tensor whose name is no text": (
        lambda file: change(file, lambda held: held.update({"a\n\x1b[31m\0" * 10**4: torch.zeros(2)})),
        WEIGHTS, r"a tensor called 'a\n\x1b[31m\x00", "copy it again"),
    "with a tensor of another shape": (
        lambda file: change(file, lambda held: held.update({NORM: torch.zeros(17)})),
        WEIGHTS, f"{NORM} has shape (17,), config.json asks for (16,)", "copy both"),
    "with a tensor of another dtype": (
        lambda file: change(file, lambda held: held.update({NORM: torch.zeros(16, dtype=torch.float64)})),
        WEIGHTS, f"{NORM} is F64", "save the model in one of these"),
    "with a tensor that is there in two layouts": (
        lambda file: change(file, lambda held: held.update({"model.language_model.norm.weight": torch.zeros(16)})),
        WEIGHTS, "is there twice", "remove one"),
    "with a buffer that MLX does not know": (
        lambda file: change(file, lambda held: held.update({"a.rotary_emb.inv_freq": torch.zeros(4, dtype=torch.float64)})),
        WEIGHTS, "unsupported dtype F64", "save the model again"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FILE)
def test_a_weight_file_is_named_that_is(tmp_path, run, fault):
    damage, *words = FILE[fault]
    source = write(tmp_path / "source")
    damage(source / WEIGHTS)
    assert_refused(run, tmp_path, source, str(source), *words)


def name_in_index(key: str, name) -> tuple:
    return (lambda source: change_json(source / INDEX_NAME, lambda data: data["weight_map"].update({key: name})),)


OUTSIDE = "which is no .safetensors file of this folder; copy the index again"
UNREADABLE = f"{INDEX_NAME} cannot be read; copy it again"
SHARDED = {  # fault of a folder with an index: what is done to it, and what the line says
    "a shard missing": (lambda source: (source / SHARDS[1]).unlink(), f"{SHARDS[1]} is missing; copy this shard"),
    "a shard that is none": (
        lambda source: in_its_place(source / SHARDS[1], lambda path: path.symlink_to(SHARDS[0])), SHARDS[1], "lacks", "copy both"),
    "two shards that point to each other": (
        lambda source: [in_its_place(source / SHARDS[i], lambda path, i=i: path.symlink_to(SHARDS[1 - i])) for i in (0, 1)],
        SHARDS[0], "a link that leads to no file; copy"),
    "an absent shard in the index": (
        *name_in_index("a.b", "model-00004-of-00003.safetensors"), "model-00004-of-00003.safetensors is missing; copy this shard"),
    "a tensor that is nowhere in the index": (*name_in_index("a.b", SHARDS[0]), SHARDS[0], "lacks 'a.b'", INDEX_NAME, "copy both"),
    "a tensor elsewhere than the index says": (
        lambda source: change_json(source / INDEX_NAME, lambda data: data["weight_map"].update(
            {NORM: next(name for name in SHARDS if name != data["weight_map"][NORM])})),
        "lacks", NORM, INDEX_NAME, "copy both"),
    "a tensor in two shards": (
        lambda source: [change(source / name, lambda held: held.update({NORM: torch.zeros(16)})) for name in SHARDS[:2]],
        SHARDS[1], SHARDS[0], NORM, "is there twice", "remove one"),
    "../../x in the index": (*name_in_index(NORM, "../../x"), INDEX_NAME, "'../../x'", OUTSIDE),
    "a safetensors file outside in the index": (*name_in_index(NORM, "../x.safetensors"), "'../x.safetensors'", OUTSIDE),
    "an absolute path in the index": (*name_in_index(NORM, "/etc/x.safetensors"), "'/etc/x.safetensors'", OUTSIDE),
    "a zero byte in the index": (*name_in_index(NORM, "x\0.safetensors"), r"'x\x00.safetensors'", OUTSIDE),
    "a line end in the index": (*name_in_index(NORM, "a\nb.safetensors"), r"'a\nb.safetensors'", OUTSIDE),
    "a name without end in the index": (*name_in_index(NORM, "x" * 10**6), "'xxx", OUTSIDE),
    "a number in the index": (*name_in_index(NORM, 5), "'5'", OUTSIDE),
    "a deep list in the index": (*name_in_index(NORM, json.loads("[" * 900 + "]" * 900)), "'[[[", OUTSIDE),
    "a nesting without end as the index": (lambda source: (source / INDEX_NAME).write_text('{"weight_map":' * 10**5), UNREADABLE),
    "a number without end as the index": (lambda source: (source / INDEX_NAME).write_text("9" * 10**5), UNREADABLE),
    "an empty index": (lambda source: (source / INDEX_NAME).write_text(""), UNREADABLE),
    "a folder as the index": (lambda source: in_its_place(source / INDEX_NAME, Path.mkdir), UNREADABLE),
    "a named pipe as the index": (lambda source: in_its_place(source / INDEX_NAME, os.mkfifo), UNREADABLE),
    "a link to itself as the index": (
        lambda source: in_its_place(source / INDEX_NAME, lambda path: path.symlink_to(path)), UNREADABLE),
}  # fmt: skip


@pytest.mark.parametrize("fault", SHARDED)
def test_in_a_folder_of_several_files_is_named(tmp_path, run, fault):
    damage, *words = SHARDED[fault]
    source = write(tmp_path / "source", shards=3)
    damage(source)
    assert_refused(run, tmp_path, source, str(source), *words)


def test_an_index_larger_than_any_is_not_read(tmp_path, run, monkeypatch):
    source = write(tmp_path / "source", shards=3)
    monkeypatch.setattr(safetensors_files, "LARGEST_INDEX", (source / INDEX_NAME).stat().st_size - 1)
    assert_refused(run, tmp_path, source, str(source), UNREADABLE)
    monkeypatch.setattr(safetensors_files, "LARGEST_INDEX", (source / INDEX_NAME).stat().st_size)
    assert run("convert", "--model", source, "--mlx-path", tmp_path / "made")[0] == 0


def config(model_type: str = "gemma", **changes) -> tuple:
    return (lambda source: (source / "config.json").write_text(json.dumps(config_json(model_type, **changes))),)


def text_of_config(text: str) -> tuple:
    return (lambda source: (source / "config.json").write_text(text),)


def vocabulary_of(content: bytes) -> tuple:
    return (lambda source: (source / "tokenizer.model").write_bytes(content),)


SMALL_FILES = {
    "more vision channels": (*config(vision={"hidden_size": 32}), "has shape (16, 16), config.json asks for (16, 32)", "copy both"),
    "another patch size": (*config(vision={"patch_size": 7}), "patch_embedding.weight has shape", "copy both"),
    "another picture size": (*config(vision={"image_size": 56}), "position_embedding.weight has shape (4, 16)", "copy both"),
    "more rows": (*config(text={"vocab_size": ROWS + 64}), f"embed_tokens.weight has shape ({ROWS}, 16)", "copy both"),
    "one more layer": (*config(text={"num_hidden_layers": 3}), "lacks language_model.layers.2.", "and 8 more", "copy both"),
    "one layer less": (*config(vision={"num_hidden_layers": 1}), "unknown", "encoder.layers.1.", "and 15 more", "copy both"),
    "hundreds of layers": (*config(text={"num_hidden_layers": 900}), "config.json asks for more layers than", "copy both"),
    "a million layers": (*config(text={"num_hidden_layers": 10**6}), "num_hidden_layers is 1000000", "below 1000"),
    "another family": (*config("gemma2"), "lacks language_model.layers.0.pre_feedforward_layernorm.weight", "copy both"),
    "a head that is not there": (*config(tie_word_embeddings=False), "lacks lm_head.weight", "copy both"),
    "a number for a section": (*config(vision_config=5), "no usable vision_config", "copy the file again"),
    "a nesting without end": (*text_of_config("[" * 10**5), "config.json cannot be read as JSON", "copy it again"),
    "objects without end": (*text_of_config('{"a":' * 10**5), "config.json cannot be read as JSON", "copy it again"),
    "a number without end": (*text_of_config('{"hidden_size": ' + "9" * 10**5 + "}"), "config.json cannot be read", "copy it"),
    "NaN": (*config(a=float("nan")), "config.json holds NaN", "correct it"),
    "an empty config": (*text_of_config(""), "config.json cannot be read as JSON", "copy it again"),
    "a folder as the config": (lambda source: in_its_place(source / "config.json", Path.mkdir), "config.json cannot be read"),
    "no config": (lambda source: (source / "config.json").unlink(), "has no config.json"),
    "a plain Gemma vocabulary": (*vocabulary_of(vocabulary(BASE)), "tokenizer.model", "a plain Gemma vocabulary will not do"),
    "half a vocabulary": (*vocabulary_of(vocabulary()[:5000]), "tokenizer.model is not a SentencePiece model; copy it again"),
    "an empty vocabulary": (*vocabulary_of(b""), "tokenizer.model is not a SentencePiece model; copy it again"),
    "no vocabulary": (lambda source: (source / "tokenizer.model").unlink(), "has no tokenizer.model; copy it"),
}  # fmt: skip


@pytest.mark.parametrize("fault", SMALL_FILES)
def test_beside_the_weights_is_named(tmp_path, run, fault):
    damage, *words = SMALL_FILES[fault]
    source = write(tmp_path / "source")
    damage(source)
    assert_refused(run, tmp_path, source, *words)


# Packed weights


def packed_folder(place: Path, form: dict, damage=lambda packed: None, said: dict | None = None) -> Path:
    """PaliGemma 2 with its text model packed; `damage` changes the arrays, by our names; `said` is config.json's quantization."""
    data = wide_json(2)
    packed = pack(weights(data), text_alone(form), mx.bfloat16)
    damage(packed)
    return write_packed(place / "source", packed, data, said)


ROW = "language_model.layers.0.mlp.up_proj"
PACKED = {  # fault: the form, what is done to the arrays, what the line says
    "without codes": (affine(4), lambda packed: packed.pop(f"{ROW}.weight"), f"lacks {ROW}.weight", "copy both"),
    "without scales": (affine(4), lambda packed: packed.pop(f"{ROW}.scales"), "unknown", "up_proj.biases", "copy both"),
    "without biases": (affine(4), lambda packed: packed.pop(f"{ROW}.biases"), "up_proj.weight is packed in no known form"),
    "without biases, in groups as mxfp4 has them": (
        affine(4, 32), lambda packed: packed.pop(f"{ROW}.biases"), "up_proj.scales is bfloat16", "mxfp4 have uint8", "convert"),
    "with other scales": (
        affine(4), lambda packed: packed.update({f"{ROW}.scales": mx.zeros((256, 3))}), "packed in no known form", "convert"),
    "with codes of another kind": (
        affine(4), lambda packed: packed.update({f"{ROW}.weight": mx.zeros((256, 16))}), "up_proj.weight is float32", "convert"),
    "with fewer rows": (
        affine(4), lambda packed: packed.update({name: packed[name][:9] for name in list(packed) if name.startswith(ROW)}),
        "up_proj.weight has 9 rows, config.json asks for 256", "copy both"),
    "without scales at all": (
        of_mode("mxfp4"), lambda packed: packed.pop(f"{ROW}.scales"), "up_proj.weight is uint32", "packed and with scales"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PACKED)
def test_a_packed_module_is_named_that_is(tmp_path, run, fault):
    form, damage, *words = PACKED[fault]
    source = packed_folder(tmp_path, form, damage)
    assert_refused(run, tmp_path, source, str(source), *words)


@pytest.mark.parametrize("said", [affine(8, 32), {"bits": "four"}, {"group_size": None, "quant_method": "gptq"}, {}], ids=str)
def test_where_config_json_says_other_bits_the_tensors_decide(tmp_path, run, said):
    source = packed_folder(tmp_path, affine(4), said=said)
    assert run("convert", "--model", source, "--mlx-path", tmp_path / "made")[0] == 0
    assert set(read_checkpoint(tmp_path / "made").packings.values()) == {Packing(4, 64)}
    written = json.loads((tmp_path / "made" / "config.json").read_text())["quantization"]
    assert (written["bits"], written["group_size"]) == (4, 64)


def test_a_quantization_block_of_weights_that_are_not_packed_is_left_out(tmp_path, run):
    source = write(tmp_path / "source", data=config_json(quantization=affine(4), quantization_config=affine(4)))
    assert run("convert", "--model", source, "--mlx-path", tmp_path / "made")[0] == 0
    assert not {"quantization", "quantization_config"} & json.loads((tmp_path / "made" / "config.json").read_text()).keys()


# Numbers


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_are_not_finite_are_refused_where_that_is_asked(tmp_path, run, number, dtype):
    source = write(tmp_path / "source", tensors(dtype=dtype))
    change(source / WEIGHTS, lambda held: held[NORM][3:].fill_(number))
    assert_refused(run, tmp_path, source, WEIGHTS, f"{NORM} holds NaN or infinite numbers; take", flags=("--check-finite",))
    assert run("convert", "--model", source, "--mlx-path", tmp_path / "made")[0] == 0


@pytest.mark.parametrize(
    ("form", "part", "code"),
    [(affine(4), "scales", float("nan")), (affine(8), "biases", float("inf")), (of_mode("mxfp8"), "weight", 0x7F7F7F7F)],
    ids=["scales", "biases", "codes"],
)
def test_so_are_those_that_packed_weights_stand_for(tmp_path, run, form, part, code):
    def damage(packed):
        array = packed[f"{ROW}.{part}"]
        packed[f"{ROW}.{part}"] = mx.where(mx.arange(array.shape[0])[:, None] == 5, mx.array(code, array.dtype), array)

    source = packed_folder(tmp_path, form, damage)
    assert_refused(run, tmp_path, source, WEIGHTS, "up_proj", "holds NaN or infinite numbers", flags=("--check-finite",))
    assert run("convert", "--model", source, "--mlx-path", tmp_path / "made")[0] == 0


# The target, and what is asked for

TARGETS = {
    "a file": (lambda place: (place / "made").write_text("mine"), "made", "is a file; choose another name"),
    "a link": (lambda place: (place / "made").symlink_to("source"), "made", "is a link; give the folder"),
    "a link to itself": (lambda place: (place / "made").symlink_to("made"), "made", "is a link; give the folder"),
    "the source": (lambda place: None, "source", "is the model that is read; choose another folder"),
    "inside the source": (lambda place: None, "source/made", "which is read; choose another folder"),
    "around the source": (lambda place: None, ".", "which is read; choose another folder"),
    "in a folder that is not there": (lambda place: None, "no/made", "does not exist; create it first"),
    "in a file": (lambda place: (place / "no").write_text(""), "no/made", "is not a folder"),
    "a name without end": (lambda place: None, "m" * 300, "cannot be written", "choose another folder"),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("fault", TARGETS)
def test_a_target_is_refused_that_is(tmp_path, run, fault, overwrite):
    make, target, *words = TARGETS[fault]
    source = write(tmp_path / "source")
    make(tmp_path)
    assert_refused(run, tmp_path, source, *words, target=target, flags=("--overwrite",) * overwrite)


def test_a_folder_with_files_is_refused_as_a_target(tmp_path, run):
    write(tmp_path / "made")
    assert_refused(run, tmp_path, write(tmp_path / "source"), "made", "--overwrite replaces it, or choose another folder")


def test_a_disk_that_is_too_small_is_refused_before_a_weight_is_read(tmp_path, run, monkeypatch):
    source = write(tmp_path / "source")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    monkeypatch.setattr("mlx_paligemma.conversion.read_in_order", lambda *_: pytest.fail("a weight was read"))
    assert_refused(run, tmp_path, source, "made", "needs 0.07 GB, and 0.00 GB are free; free some space")


FLAGS = {
    "bits": (("-q", "--q-bits", "7"), "7", "can be 3, 4, 5, 6, 8"),
    "groups": (("-q", "--q-group-size", "48"), "48", "can be 32, 64, 128"),
    "bits without -q": (("--q-bits", "4"), "add -q"),
    "quantised for other programs": (("-q", "--to", "hf"), "leave one out"),
    "groups wider than any layer": (("-q",), "no layer of this model can be quantised"),
}


@pytest.mark.parametrize("fault", FLAGS)
def test_a_wish_is_refused_with_another_code_that_is_about(tmp_path, run, fault):
    flags, *words = FLAGS[fault]
    assert_refused(run, tmp_path, write(tmp_path / "source"), *words, flags=flags, code=2)


# What the system refuses, and what changes meanwhile


@contextmanager
def somebody():
    """As a user who may do what everybody may: root may do all."""
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65534)
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def open_place():
    """A folder into which everybody may look; pytest's own are for one user."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o777)
        yield Path(place)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.model", "."])
def test_what_may_not_be_read_is_named(open_place, run, name):
    source = write(open_place / "source")
    (source / WEIGHTS).chmod(0o644)  # safetensors writes files for one user
    assert run("convert", "--model", source, "--mlx-path", open_place / "first")[0] == 0  # also imports all that it needs
    before = state(open_place)
    mode = (source / name).stat().st_mode
    (source / name).chmod(0)
    with somebody():
        code, out, err = run("convert", "--model", source, "--mlx-path", open_place / "made")
    (source / name).chmod(mode)
    assert (code, out) == (1, "")
    one_line(err, str(source / name), "Permission denied")
    assert state(open_place) == before


@pytest.mark.parametrize(
    ("owner", "name", "words"),
    [(converted_folder, "read_checkpoint", "become shorter meanwhile"), (tensor_reader, "_open", "has changed meanwhile")],
    ids=["after its header was checked", "after it was opened"],
)
def test_a_file_that_is_cut_is_named(tmp_path, run, monkeypatch, owner, name, words):
    source, real = write(tmp_path / "source"), getattr(owner, name)

    def read_and_cut(path):
        found = real(path)
        os.truncate(source / WEIGHTS, 20_000)
        return found

    monkeypatch.setattr(owner, name, read_and_cut)
    code, out, err = run("convert", "--model", source, "--mlx-path", tmp_path / "made")
    assert (code, out) == (1, "")
    one_line(err, str(source / WEIGHTS), words, "copy it again")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_more_files_than_may_be_open_are_refused(tmp_path, run):
    source, limits = write(tmp_path / "source", shards=40), resource.getrlimit(resource.RLIMIT_NOFILE)
    held = len(list(Path("/dev/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 20, limits[1]))
    try:
        code, out, err = run("convert", "--model", source, "--mlx-path", tmp_path / "made")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (code, out) == (1, "")
    one_line(err, str(source), "too many files are open; raise `ulimit -n`")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_path_that_is_no_text_is_refused(tmp_path, run):
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    try:
        source = write(place / "source")
    except OSError:
        pytest.skip("this file system has only names that are UTF-8")
    code, out, err = run("convert", "--model", source, "--mlx-path", tmp_path / "made")
    assert (code, out) == (1, "")
    one_line(err, WEIGHTS, "its path is not UTF-8; move it")
    assert list(tmp_path.iterdir()) == [place]


def test_ten_thousand_other_files_do_no_harm(tmp_path, run):
    source = write(tmp_path / "source")
    for number in range(10_000):
        (source / f"{number}.txt").touch()
    assert run("convert", "--model", source, "--mlx-path", tmp_path / "made")[0] == 0
    assert len(list((tmp_path / "made").iterdir())) < 20


# The other readers of the same files

SAMPLE = [
    (FILE, name) for name in ("cut in its data", "with a header of 2 ** 60 bytes", "a link to itself", "with one more tensor",
                              "with a tensor of another shape", "with a tensor of another dtype")
] + [(SMALL_FILES, name) for name in ("more rows", "a nesting without end", "a plain Gemma vocabulary")]  # fmt: skip


@pytest.mark.parametrize(("faults", "fault"), SAMPLE, ids=[name for _, name in SAMPLE])
@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_generate_says_the_same_with_both_backends_where_a_folder_has(tmp_path, run, faults, fault, backend):
    damage, *words = faults[fault]
    source = write(tmp_path / "source")
    damage(source / WEIGHTS if faults is FILE else source)
    before = state(tmp_path)
    code, out, err = run("generate", PICTURE, "-p", "caption en", "--model", source, "--backend", backend)
    assert (code, out) == (1, "")
    one_line(err, *words)
    assert state(tmp_path) == before


def test_every_fault_is_one_of_a_folder_that_is_good_without_it(tmp_path, run):
    for name, made in {"file": write(tmp_path / "a"), "shards": write(tmp_path / "b", shards=3)}.items():
        assert run("convert", "--model", made, "--mlx-path", tmp_path / name)[0] == 0


# What ends it in the middle

MLP = {"hidden_size": 512, "intermediate_size": 8192, "num_hidden_layers": 6}
PLAIN, QUANTISED = ("--max-shard-size", "0.05"), ("-q", "--max-shard-size", "0.005")  # gigabytes: eight shards or so
OLD_FILES = {"config.json": b"old", "deep/model.safetensors": b"old weights"}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint of 310 MB."""
    data = config_json(text=MLP, projection_dim=MLP["hidden_size"])
    shapes = expected_shapes(PaliGemmaConfig.from_dict(data))
    made = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    folder = write(tmp_path_factory.mktemp("large") / "source", made, data=data)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def old(tmp_path) -> Path:
    """The target, with a model in it."""
    for name, content in OLD_FILES.items():
        (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / name).write_bytes(content)
    return tmp_path / "made"


def start(source: Path, target: Path, *flags: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "mlx_paligemma", "convert", "--model", source, "--mlx-path", target, "--overwrite"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*map(str, command), *flags], **pipes, **options)


def wait_for_shard(process: subprocess.Popen, target: Path, number: int) -> None:
    """Until so many shards of the new folder have been begun."""
    ends = time.monotonic() + 60
    while not any(target.parent.glob(f".{target.name}.partial-*/new/part-{number}.safetensors")):
        assert process.poll() is None and time.monotonic() < ends, process.communicate()
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("number", "flags", "code", "line"),
    [
        (signal.SIGINT, PLAIN, 130, "error: interrupted\n"),
        (signal.SIGINT, QUANTISED, 130, "error: interrupted\n"),
        (signal.SIGTERM, PLAIN, 143, ""),
        (signal.SIGHUP, QUANTISED, 129, ""),
    ],
    ids=["Ctrl-C", "Ctrl-C while it quantises", "SIGTERM", "SIGHUP while it quantises"],
)
def test_a_signal_in_the_middle_leaves_the_old_folder_and_nothing_else(large, old, number, flags, code, line):
    before, place = state(large), state(old.parent)
    with start(large, old, *flags) as process:
        wait_for_shard(process, old, 2)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, "", line)
    assert state(old.parent) == place
    assert state(large) == before


def test_a_full_disk_in_the_middle_leaves_the_old_folder_and_nothing_else(large, old):
    before, place = state(large), state(old.parent)
    limit = 20 * 10**6  # bytes of a file: the small ones are written, a shard of two matrices is not
    with start(large, old, *PLAIN, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    one_line(err, str(old), "was not written: the disk is full, or a limit on files is reached; free some space")
    assert state(old.parent) == place
    assert state(large) == before


def test_what_is_left_alone_becomes_a_whole_new_folder(large, old):
    with start(large, old, *PLAIN) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "0.306 GB of weights" in out
    assert sorted(read_checkpoint(old).tensors) == sorted(read_checkpoint(large).tensors)
    assert [path.name for path in old.parent.iterdir()] == ["made"]
