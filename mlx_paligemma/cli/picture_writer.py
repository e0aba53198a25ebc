"""Where `-o` puts drawn pictures and `--masks` puts masks, and how they keep the inputs safe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

from PIL import Image

from ..common.errors import OptionError
from ..common.formats import Stems, picture_stem
from ..common.masks import save_mask
from ..common.results import Detection


class PictureWriter:
    """One file, or a folder with a PNG per answer."""

    def __init__(self, output: Path, sources: Sequence[str], answers: int):
        """`sources` are the input pictures. Makes the folder.

        Raises:
            OptionError: the place cannot take as many pictures, has no picture format, or would lose an input.
        """
        Image.init()
        known = Image.EXTENSION.get(output.suffix.lower()) in Image.SAVE
        self.file = output
        self.folder = output if output.is_dir() or not known else None
        if self.folder is None and answers > 1:
            raise OptionError(f"-o {output} is one file, but there are {answers} pictures; give a folder")
        if self.folder is not None and output.suffix and not output.is_dir():
            raise OptionError(f"-o {output}: {output.suffix} is no picture format that can be written; try .png, or give a folder")
        targets = [output] if self.folder is None else [output / f"{picture_stem(source)}.png" for source in sources]
        lost = {Path(source).resolve() for source in sources} & {target.resolve() for target in targets}
        if lost:
            raise OptionError(f"-o {output} would overwrite the picture {lost.pop()}; choose another place")
        (output.parent if self.folder is None else output).mkdir(parents=True, exist_ok=True)
        self._used: set[Path] = set()

    def write(self, name: str, picture: Image.Image) -> Path:
        """Save a picture under the input's name; never over one of the same run."""
        path = self.file
        if self.folder is not None:
            path = next(path for path in _candidates(self.folder, picture_stem(name)) if path not in self._used)
        self._used.add(path)
        picture.save(path)
        return path


class MaskWriter:
    """A folder with a PNG per mask: <picture>-<number in the answer>-<label>.png."""

    def __init__(self, folder: Path, sources: Sequence[str], names: Sequence[str]):
        """`sources` are the input pictures, `names` all answers in order: each gets file names of its own. Makes the folder.

        Raises:
            OptionError: the folder is a file, or holds input pictures.
        """
        if folder.exists() and not folder.is_dir():
            raise OptionError(f"--masks {folder} is a file; give a folder")
        if folder.resolve() in {parent.resolve() for parent in {Path(source).parent for source in sources if "://" not in source}}:
            raise OptionError(f"--masks {folder} holds the pictures themselves; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._stems = folder, Stems()
        for name in names:
            self._stems.of(name)

    def write(self, name: str, detections: Iterable[Detection]) -> None:
        """Save the masks of an answer."""
        for number, detection in enumerate(detections, 1):
            if detection.mask is not None:
                save_mask(detection.mask, self.folder / f"{self._stems.of(name)}-{number}-{_slug(detection.label)}.png")


def _slug(label: str) -> str:
    """A label as a part of a file name: letters and digits of any script, words joined by -."""
    return re.sub(r"[\W_]+", "-", label).strip("-")[:40] or "object"


def _candidates(folder: Path, stem: str) -> Iterator[Path]:
    yield folder / f"{stem}.png"
    for number in count(2):
        yield folder / f"{stem}-{number}.png"
