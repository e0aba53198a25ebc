"""Many files at once, asked through the tab's own function."""

import json
import zipfile
from pathlib import Path

import gradio as gr
import pytest
from pictures import encoded, file_with
from PIL import Image
from program import PICTURE

from mlx_paligemma.common.errors import OptionError
from mlx_paligemma.ui.batch_tab import BatchTab
from mlx_paligemma.ui.model_spec import ModelSpec
from mlx_paligemma.ui.settings import Settings
from mlx_paligemma.ui.shelf import Shelf
from mlx_paligemma.ui.site import Site
from mlx_paligemma.ui.tasks import Task

CHOSEN = (40, False, 0.7, 0.95, None, True)  # max_tokens, sampling, temperature, top_p, seed, grammar
SHAPES = Image.open(PICTURE).convert("RGB")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    shelf = Shelf()
    [*shelf.load(ModelSpec())]
    yield Site(shelf, Settings(max_files=5), tmp_path_factory.mktemp("files"))
    shelf.close()


@pytest.fixture
def tab(site):
    with gr.Blocks():
        return BatchTab(site)


def asked(tab, paths, task=Task.detect, text="star"):
    return [*tab._running("anna", paths, task, text, "en", *CHOSEN)]


def uploaded(folder, sizes, name="a.png"):
    """Files of one name, each in a folder of its own, as Gradio keeps them."""
    paths = []
    for size in sizes:
        (folder / str(size)).mkdir()
        paths.append(str(file_with(encoded(SHAPES.resize((size, size))), folder / str(size), name)))
    return paths


def test_files_of_one_name_have_records_and_drawings_of_their_own(tab, tmp_path):
    paths = uploaded(tmp_path, [224, 300, 260])
    Path(paths[2]).write_text("hello")
    *_, last = asked(tab, paths)
    assert last[tab._line] == "2 of 3 answered, 1 failed"
    with zipfile.ZipFile(last[tab._zip].value["path"]) as packed:
        records = [json.loads(line) for line in packed.read("answers.jsonl").splitlines()]
        assert [record["image"] for record in records] == ["a.png", "a-2.png", "a-3.png"]
        assert [record.get("width") for record in records] == [224, 300, None]
        assert records[2]["error"].startswith("a-3.png ")
        assert [image["file_name"] for image in json.loads(packed.read("coco.json"))["images"]] == ["a.png", "a-2.png"]
        for name, size in (("drawn/a.png", 224), ("drawn/a-2.png", 300)):
            with packed.open(name) as file:
                assert Image.open(file).size == (size, size)
        assert not any(str(tmp_path).encode() in packed.read(name) for name in packed.namelist())


def test_a_stop_keeps_what_there_is(tab, tmp_path):
    paths = uploaded(tmp_path, [224]) * 5
    updates = []
    for update in tab._running("anna", paths, Task.caption, "", "en", *CHOSEN):
        updates.append(update)
        if update.get(tab._table):
            tab._site.stops.request("anna-batch")
    assert updates[-1][tab._line].endswith(("5 of 5 answered", "stopped"))
    with zipfile.ZipFile(updates[-1][tab._zip].value["path"]) as packed:
        assert 1 <= packed.read("answers.jsonl").count(b"\n") <= 5


def test_none_and_too_many_are_refused(tab, tmp_path):
    with pytest.raises(OptionError, match="no pictures yet"):
        asked(tab, None)
    with pytest.raises(OptionError, match="6 pictures; give at most 5"):
        asked(tab, uploaded(tmp_path, [64]) * 6)
