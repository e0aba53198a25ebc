"""The files beside the weights: those made here are what transformers needs, those carried over are no others than these."""

import json
import os

import numpy as np
import pytest
from checkpoints import IMAGE_TOKEN, config, config_json, tensors, tokenizer, vocabulary, write
from pictures import picture

from mlx_paligemma.common.config_file import config_json as complete_config
from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.image import pixel_values
from mlx_paligemma.common.processor import PaliGemmaProcessor
from mlx_paligemma.common.side_files import files_to_copy, generation_json, json_bytes, preprocessor_json
from mlx_paligemma.common.tokenizer_files import tokenizer_files
from mlx_paligemma.published import published_config

CARRIED = ["LICENCE.txt", "LICENSE", "LICENSE.md", "NOTICE", "NOTICE.txt", "added_tokens.json",
           "additional_chat_templates/tool-use.jinja", "chat_template.jinja", "chat_template.json", "generation_config.json",
           "preprocessor_config.json", "processor_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.model",
           "tokenizer_config.json", "vae-oid.npz"]  # fmt: skip
LEFT = ["config.json", "README.md", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "pytorch_model.bin", "tokenizer.bin", "tokenizer.pkl", "tokenizer.model.bin", "paligemma.npz", "modeling_paligemma.py",
        "tokenizer.py", ".tokenizer.json", ".gitattributes", ".git/config", "tokenizer/tokenizer.json", "adapter_config.json",
        "processor_config.json.bak", "optimizer.pt", "additional_chat_templates/x.py", "training_args.bin",
        "LICENSE.pdf"]  # fmt: skip


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def copied(folder) -> list[str]:
    return [path.as_posix() for path in files_to_copy(folder)]


def test_vocabulary_processors_templates_codec_and_licences_are_carried_over_and_nothing_else(tmp_path):
    fill(tmp_path, CARRIED + LEFT)
    assert copied(tmp_path) == sorted(CARRIED)


def test_an_empty_folder_has_nothing_to_carry(tmp_path):
    assert copied(tmp_path) == []


def test_the_cache_of_the_hub_is_read_through_its_links(tmp_path):
    cache, snapshot = tmp_path / "models--google--x", tmp_path / "models--google--x" / "snapshots" / "0a1b"
    fill(cache / "blobs", ["1f", "2f"])
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.model").symlink_to("../../blobs/1f")
    (snapshot / "additional_chat_templates").mkdir()
    (snapshot / "additional_chat_templates" / "rag.jinja").symlink_to("../../../blobs/2f")
    assert copied(snapshot) == ["additional_chat_templates/rag.jinja", "tokenizer.model"]


def test_links_that_leave_the_folder_loops_folders_and_pipes_are_not_followed(tmp_path):
    folder = tmp_path / "model"
    fill(tmp_path, ["secret", "blobs/1f", "templates/a.jinja"])
    fill(folder, ["real.json"])
    (folder / "LICENSE").symlink_to(tmp_path / "secret")
    (folder / "NOTICE").symlink_to(tmp_path / "blobs" / "1f")
    (folder / "tokenizer.json").symlink_to("tokenizer.json")
    (folder / "tokenizer.model").symlink_to("gone")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "templates")
    (folder / "added_tokens.json").mkdir()
    os.mkfifo(folder / "chat_template.json")
    (folder / "tokenizer_config.json").symlink_to("real.json")
    assert copied(folder) == ["tokenizer_config.json"]


def test_a_folder_that_is_itself_a_link_is_read(tmp_path):
    fill(tmp_path / "model", ["tokenizer.model"])
    (tmp_path / "link").symlink_to("model")
    assert copied(tmp_path / "link") == ["tokenizer.model"]


def test_json_files_are_sorted_and_end_with_a_line():
    assert json_bytes({"b": [1, "é"], "a": None}) == b'{\n  "a": null,\n  "b": [\n    1,\n    "\\u00e9"\n  ]\n}\n'
    assert json.loads(json_bytes({"half a pair": "\ud800"})) == {"half a pair": "\ud800"}


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("kept", [float("nan"), [float("-inf")], nested(100_000)], ids=["NaN", "Infinity", "nested"])
def test_what_json_cannot_hold_gives_one_line(kept):
    with pytest.raises(CheckpointError, match="correct it there"):
        json_bytes({"kept": kept})


def test_pictures_of_any_mode_are_converted_whatever_a_class_does_by_default():
    assert preprocessor_json(config())["do_convert_rgb"] is True


# transformers, on a folder that has these files alone


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module", params=["gemma", "gemma2"])
def folder(request, tmp_path_factory):
    """Weights in the layout of the Hub, and beside them only what is made here and by tokenizer_files."""
    path = write(tmp_path_factory.mktemp(request.param), tensors(config_json(request.param)), data=config_json(request.param))
    made = config(model_type=request.param)
    files = {"config.json": complete_config(made, "float32"), "preprocessor_config.json": preprocessor_json(made),
             "generation_config.json": generation_json(made)}  # fmt: skip
    for name, content in (
        {name: json_bytes(data) for name, data in files.items()} | tokenizer_files(vocabulary(), IMAGE_TOKEN)
    ).items():
        (path / name).write_bytes(content)
    return path


def ours(folder) -> PaliGemmaProcessor:
    return PaliGemmaProcessor(
        config(**{"model_type": json.loads((folder / "config.json").read_text())["text_config"]["model_type"]}), tokenizer()
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
def test_the_auto_processor_makes_our_pixels_and_our_ids(folder, transformers, mode):
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    assert type(processor).__name__ == "PaliGemmaProcessor"
    theirs = processor(images=picture(mode, 50, 31), text="<image>detect cat", return_tensors="np")
    inputs = ours(folder)([picture(mode, 50, 31)], ["detect cat"])
    assert np.array_equal(theirs["pixel_values"][0].transpose(1, 2, 0), inputs.pixel_values[0, 0])
    assert theirs["input_ids"].tolist() == inputs.input_ids.tolist()


@pytest.mark.parametrize("resolution", [224, 448, 896])
def test_released_resolutions_have_our_pixels_and_number_of_image_tokens(tmp_path, transformers, resolution):
    published = published_config("pg1-3b", resolution)
    (tmp_path / "preprocessor_config.json").write_bytes(json_bytes(preprocessor_json(published)))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    pixels = theirs(picture("RGB", 701, 499), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert np.array_equal(pixels, pixel_values(picture("RGB", 701, 499), resolution))
    assert theirs.image_seq_length == published.vision.num_patches


def test_transformers_loads_the_model_and_generates_to_the_end_token(folder, transformers):
    torch = pytest.importorskip("torch")
    model, report = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    settings = model.generation_config
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (2, 1, 0)
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    inputs = processor(images=picture("RGB", 50, 31), text="<image>caption en", return_tensors="pt")
    output = model.eval().generate(
        **{key: value for key, value in inputs.items() if key != "labels"}, max_new_tokens=4, do_sample=False
    )
    new = output[0, inputs["input_ids"].shape[1] :].tolist()
    assert 1 <= len(new) <= 4
    assert len(new) == 4 or new[-1] == 1
