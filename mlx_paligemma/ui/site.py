"""What all tabs of the page share."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .settings import Settings
from .shelf import Shelf
from .stop import Stops


@dataclass(frozen=True)
class Site:
    """Models, limits, what runs for whom, and a folder for files that visitors take away."""

    shelf: Shelf
    settings: Settings
    folder: Path
    stops: Stops = field(default_factory=Stops)

    def new_folder(self) -> Path:
        """An empty folder for files. Those made longer ago than files are kept go now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - self.settings.files_kept
        for old in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another visitor's call may have been faster
                if old.stat().st_mtime < oldest:
                    shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=self.folder))
