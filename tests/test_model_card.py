"""The card of a converted model: what the Hub reads of it, and commands that can be run as they stand there."""

import ast
import re
import shlex
from functools import partial

import pytest
from huggingface_hub import ModelCard

from mlx_paligemma import __version__
from mlx_paligemma.common.model_card import model_card as card_of

model_card = partial(card_of, version=__version__)
BASE = "google/paligemma2-3b-mix-448"
SOURCE = """---
license: gemma
license_link: https://ai.google.dev/gemma/terms
library_name: transformers
pipeline_tag: image-to-text
base_model: google/paligemma2-3b-pt-448
base_model_relation: finetune
tags: [vision, transformers]
language: [en, ja]
extra_gated_heading: "Access PaliGemma: on Hugging Face"
model-index:
- name: x
---
# The source's own words
"""


def metadata(card: str) -> dict:
    return ModelCard(card).data.to_dict()


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", card, re.DOTALL)


def test_the_hub_reads_licence_library_task_and_source():
    assert metadata(model_card("me/x", BASE)) == {
        "license": "gemma", "library_name": "mlx", "pipeline_tag": "image-text-to-text", "base_model": BASE,
        "tags": ["paligemma", "mlx"],
    }  # fmt: skip


def test_a_quantised_model_is_listed_as_such_under_its_source():
    assert metadata(model_card("me/x", BASE, "4 bits"))["base_model_relation"] == "quantized"
    assert "base_model_relation" not in metadata(model_card("me/x", BASE, source_card=SOURCE))
    assert metadata(model_card("me/x", None, "4 bits", source_card=SOURCE))["base_model_relation"] == "finetune"


def test_what_the_card_of_the_source_says_is_kept_but_for_what_changes():
    data = metadata(model_card("me/x", BASE, source_card=SOURCE))
    assert data["license_link"] == "https://ai.google.dev/gemma/terms"
    assert data["language"] == ["en", "ja"]
    assert data["extra_gated_heading"] == "Access PaliGemma: on Hugging Face"
    assert data["tags"] == ["vision", "paligemma", "mlx"]
    assert (data["library_name"], data["pipeline_tag"], data["base_model"]) == ("mlx", "image-text-to-text", BASE)
    assert "model-index" not in data
    assert "own words" not in model_card("me/x", BASE, source_card=SOURCE)


def test_the_licence_is_that_of_the_source_and_gemma_where_it_says_nothing():
    assert metadata(model_card("x"))["license"] == "gemma"
    assert metadata(model_card("x", licence="mit"))["license"] == "mit"
    assert metadata(model_card("x", source_card="---\nlicense: apache-2.0\n---\n"))["license"] == "apache-2.0"
    assert metadata(model_card("x", source_card="---\nlicense:\n---\n"))["license"] == "gemma"
    assert "Gemma Terms of Use" in model_card("x")
    assert "Gemma Terms of Use" not in model_card("x", licence="mit")


def test_a_card_made_from_a_card_of_ours_is_the_same():
    card = model_card("me/x", BASE, "4 bits", source_card=SOURCE)
    assert model_card("me/x", BASE, "4 bits", source_card=card) == card


@pytest.mark.parametrize(
    "source",
    ["words", "",
     "---\n- a\n---\n", "---\n: : [\n---\n", "---\nlicense: 2024-13-45\n---\n", "---\n" + "[" * 5000 + "\n---\n", "---\n",
     "---\nlicense: !!python/object/apply:os.system ['exit 1']\n---\n", "---\ntags: one\n---\n", "---\ntags: [1, {a: b}]\n---\n"],
)  # fmt: skip
def test_a_damaged_card_of_the_source_is_passed_over(source, caplog):
    assert metadata(model_card("me/x", BASE, source_card=source)) == metadata(model_card("me/x", BASE))
    assert not caplog.records


@pytest.mark.parametrize("source", ["\ufeff---\nlicense: mit\n---\nx", "---\r\nlicense: mit\r\n---\r\nx"], ids=["mark", "Windows"])
def test_a_card_written_on_windows_is_read(source):
    assert metadata(model_card("x", source_card=source))["license"] == "mit"


def test_the_body_names_the_source_the_version_and_the_recipe():
    card = model_card("me/x", BASE, "text body 4 bits, embedding 8 bits")
    assert (
        f"converted to MLX format from [`{BASE}`](https://huggingface.co/{BASE}) using mlx-paligemma version **{__version__}**"
        in card
    )
    assert "quantised: text body 4 bits, embedding 8 bits." in card
    assert "stored in float16." in model_card("me/x", BASE, dtype="float16")


def test_a_local_source_is_not_named():
    card = model_card("x")
    assert "base_model" not in metadata(card)
    assert "converted to MLX format using" in card
    assert "None" not in card


@pytest.mark.parametrize("name", ["me/paligemma-4bit", 'a folder/it\'s "mine"'])
def test_commands_and_programs_can_be_run_as_they_stand(name):
    card = model_card(name, to="hf")
    (shell,) = blocks(card, "sh")
    command = shlex.split(shell.splitlines()[-1])
    assert command == ["mlx-paligemma", "generate", "photo.jpg", "-p", "detect cat", "--model", name]
    programs = [ast.parse(block) for block in blocks(card, "python")]
    assert len(programs) == 2
    for program in programs:
        assert name in [node.value for node in ast.walk(program) if isinstance(node, ast.Constant)]


def test_the_form_of_the_hub_is_listed_under_transformers():
    data = metadata(model_card("me/x", BASE, to="hf", source_card="---\ntags: [mlx]\n---\n"))
    assert data["library_name"] == "transformers"
    assert data["tags"] == ["paligemma", "transformers"]
    assert "transformers" not in model_card("me/x", BASE)
