"""Folders for visitors' files: each their own, and none kept for ever."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlx_paligemma.ui.settings import Settings
from mlx_paligemma.ui.shelf import Shelf
from mlx_paligemma.ui.site import Site


def test_every_folder_is_another_one_and_empty(tmp_path):
    site = Site(Shelf(), Settings(), tmp_path / "not" / "there")
    made = [site.new_folder() for _ in range(5)]
    assert len({*made}) == 5
    assert not [file for folder in made for file in folder.iterdir()]
    assert {*(tmp_path / "not" / "there").iterdir()} == {*made}


def test_what_is_older_than_files_are_kept_goes(tmp_path):
    site = Site(Shelf(), Settings(files_kept=100), tmp_path)
    old, young = site.new_folder(), site.new_folder()
    (old / "a.txt").write_text("a")
    os.utime(old, (time.time() - 101,) * 2)
    os.utime(young, (time.time() - 50,) * 2)
    site.new_folder()
    assert young.exists() and not old.exists()


def test_many_visitors_at_once_get_folders_while_old_ones_go(tmp_path, monkeypatch):
    site = Site(Shelf(), Settings(files_kept=100), tmp_path)
    olds = [site.new_folder() for _ in range(30)]
    for old in olds:
        os.utime(old, (1, 1))
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **more: time.sleep(0.001) or real(path, **more))
    with ThreadPoolExecutor(8) as threads:
        made = [*threads.map(lambda _: site.new_folder(), range(8))]
    assert all(folder.exists() for folder in made)
    assert not any(old.exists() for old in olds)


def test_two_sites_share_no_stops():
    one, other = (Site(Shelf(), Settings(), Path()) for _ in range(2))
    with one.stops.running("anna"):
        assert not other.stops.request("anna")
