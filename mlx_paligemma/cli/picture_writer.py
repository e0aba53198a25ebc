"""Where `-o` puts drawn pictures, and how it keeps the inputs safe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from PIL import Image

from ..common.errors import OptionError


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
        targets = [output] if self.folder is None else [output / f"{_stem(source)}.png" for source in sources]
        lost = {Path(source).resolve() for source in sources} & {target.resolve() for target in targets}
        if lost:
            raise OptionError(f"-o {output} would overwrite the picture {lost.pop()}; choose another place")
        (output.parent if self.folder is None else output).mkdir(parents=True, exist_ok=True)
        self._used: set[Path] = set()

    def write(self, name: str, picture: Image.Image) -> Path:
        """Save a picture under the input's name; never over one of the same run."""
        path = self.file
        if self.folder is not None:
            path = next(path for path in _candidates(self.folder, _stem(name)) if path not in self._used)
        self._used.add(path)
        picture.save(path)
        return path


def _stem(source: str) -> str:
    """The name of a picture's file or address, without its ending."""
    return Path(source.split("?", maxsplit=1)[0]).stem or "picture"


def _candidates(folder: Path, stem: str) -> Iterator[Path]:
    yield folder / f"{stem}.png"
    for number in count(2):
        yield folder / f"{stem}-{number}.png"
