"""Where `-o` puts drawn pictures and `--masks` puts masks, and how they keep the inputs safe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

from PIL import Image

from ..common.errors import OptionError
from ..common.formats import Stems, mask_file_name, picture_stem
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
        self._check_inputs(sources)
        self._own = {picture_stem(source).casefold() for source in sources}
        (output.parent if self.folder is None else output).mkdir(parents=True, exist_ok=True)
        self._used: set[str] = set()

    def write(self, name: str, picture: Image.Image) -> Path:
        """Save a picture under the input's name; never over one of the same run."""
        path = self.file
        if self.folder is not None:
            path = self.folder / f"{next(self._free_stems(picture_stem(name)))}.png"
            self._used.add(path.stem.casefold())
        picture.save(path)
        return path

    def _free_stems(self, stem: str) -> Iterator[str]:
        """The picture's own name, or with -2, -3, ...; x.png and X.png are one file on a Mac's disk."""
        if stem.casefold() not in self._used:
            yield stem
        numbered = (f"{stem}-{number}" for number in count(2))
        yield from (name for name in numbered if name.casefold() not in self._used | self._own)

    def _check_inputs(self, sources: Sequence[str]) -> None:
        for source in (Path(source) for source in sources if "://" not in source):
            if self.folder is not None and source.parent.resolve() == self.folder.resolve():
                raise OptionError(
                    f"-o {self.folder} is the folder of {source.name}, and might overwrite pictures there; choose another"
                )
            if self.folder is None and is_same_file(self.file, source):
                raise OptionError(f"-o {self.file} would overwrite the picture {source}; choose another place")
        if self.folder is None:
            check_plain(self.file)


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
                save_mask(detection.mask, self.folder / mask_file_name(self._stems.of(name), number, detection.label))


def is_same_file(a: Path, b: Path) -> bool:
    """Whether both are there and are one file, through links or a disk that takes A for a too."""
    return a.exists() and b.exists() and a.samefile(b)


def check_plain(target: Path) -> None:
    """Raises OptionError where something other than a file would be overwritten: a device, a pipe, a folder."""
    if target.exists() and not target.is_file():
        raise OptionError(f"{target} is not a plain file; choose another place")
