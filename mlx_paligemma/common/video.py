"""Pictures out of a video file: a few frames, evenly spaced, as a model takes them.

Containers and codecs are FFmpeg's, through PyAV (`av`, the extra [video]). The file is read twice: once for the times of its
frames, which takes no decoding, and once from key frame to key frame, so that no more than the wanted pictures are ever kept.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from PIL import Image

from .errors import BackendError, ImageError, OptionError
from .image import to_rgb

WHOLE = 0.9  # a file whose contents end before this part of the length that it tells has been cut


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video."""

    image: Image.Image  # RGB, upright
    seconds: float  # from the video's first frame to this one


@dataclass(frozen=True)
class _Index:
    """The frames of a video, in ticks of its time base."""

    times: list[int]  # of every frame, rising
    keys: list[int]  # of those with which decoding can begin, rising
    end: int  # when the last frame ends


class _NamelessFile:
    """A file whose name FFmpeg does not see: by the name alone it would take any .txt for terminal art."""

    def __init__(self, file: BinaryIO):
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def video_frames(path: str | os.PathLike[str], count: int) -> list[Frame]:
    """The frames that are shown in the middles of `count` equal parts of a video's length, in order.

    A frame that is shown in several of the middles comes once: a video with fewer frames gives all that it has. Rotation is
    applied, transparency is laid on white. Animated GIFs and changing frame rates are videos like any other.

    Raises:
        OptionError: count is below 1.
        BackendError: PyAV is not installed.
        ImageError: one line that names the file and says what to do.
    """
    if count < 1:
        raise OptionError(f"{count} frames of a video cannot be had; ask for at least 1")
    av, name = _library(), "".join(c if c.isprintable() else "?" for c in os.fspath(path)) or "''"
    try:
        with Path(path).open("rb") as file, ExitStack() as opened:
            return _read(lambda: opened.enter_context(_opened(av, file, name)), count, name)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ImageError(_complaint(name, error)) from None


def _library() -> ModuleType:
    try:
        import av
    except ModuleNotFoundError:
        raise BackendError("videos need the package av; install it with: pip install 'mlx-paligemma[video]'") from None
    return av


def _opened(av: ModuleType, file: BinaryIO, name: str) -> Any:
    """An FFmpeg container at its beginning. It may use no protocol: a playlist posing as a video must not reach other files."""
    file.seek(0)
    try:
        container = av.open(_NamelessFile(file), options={"protocol_whitelist": "none"}, metadata_errors="replace")
    except (av.FFmpegError, ValueError):
        raise ImageError(f"{name} is not a video that FFmpeg can read, or its beginning is damaged; save it as MP4 first") from None
    for stream in container.streams.video:
        stream.thread_type = "AUTO"  # all cores, and can be said only before the first frame
    return container


def _read(opened: Callable[[], Any], count: int, name: str) -> list[Frame]:
    index = _index(opened(), name)
    first, length = index.times[0], index.end - index.times[0]
    middles = [first + length * (2 * part + 1) // (2 * count) for part in range(count)]
    wanted = dict.fromkeys(index.times[bisect_right(index.times, middle) - 1] for middle in middles)
    return [
        Frame(_upright(frame), float((frame.pts - first) * frame.time_base))
        for frame in _decoded(opened, list(wanted), index, name)
    ]


def _pictures(container: Any, name: str) -> Any:
    """The stream that holds the pictures. The cover of a song is a stream too, but does not move."""
    stream = container.streams.best("video")
    if stream is None or "attached_pic" in (stream.disposition.name or ""):
        raise ImageError(f"{name} has no moving pictures in it, only other things such as sound; choose another file")
    return stream


def _index(container: Any, name: str) -> _Index:
    """When each frame is shown. Reads the whole file, all its streams: the longest one tells whether it was cut."""
    stream = _pictures(container, name)
    shown: list[tuple[int, int, bool]] = []  # time, duration, whether it is a key frame
    reach, cut = 0.0, False  # seconds; whether the last packet misses its end
    for packet in _all(container.demux()):
        time = packet.dts if packet.pts is None else packet.pts
        if not packet.size:  # these mark the ends of streams
            continue
        cut = packet.is_corrupt
        reach = max(reach, float(((time or 0) + (packet.duration or 0)) * packet.time_base))
        if packet.stream is stream and time is not None and not packet.is_discard:
            shown.append((time, packet.duration or 0, packet.is_keyframe))
    _check_whole(container, reach, cut, name)
    if not shown:
        raise ImageError(f"{name} has no pictures with times in it; save it as MP4 first")
    shown.sort()
    times = [time for time, *_ in shown]
    usual = max(1, (times[-1] - times[0]) // max(1, len(times) - 1))  # ticks from frame to frame
    keys = [times[0], *(time for time, _, is_key in shown if is_key)]  # the first is where decoding begins anyway
    return _Index(times, keys, times[-1] + (shown[-1][1] or usual))


def _check_whole(container: Any, reach: float, cut: bool, name: str) -> None:
    told = (container.duration or 0) / 1e6  # seconds
    reached = reach - (container.start_time or 0) / 1e6
    if cut or reached < WHOLE * told:
        of_these = f" of {told:.1f} s" if told > reached else ""
        raise ImageError(f"{name} is cut short: it ends after {reached:.1f} s{of_these}; copy or download it again")


def _decoded(opened: Callable[[], Any], wanted: list[int], index: _Index, name: str) -> Iterator[Any]:
    """The PyAV frames of the wanted times, which rise. Jumps ahead to a key frame where that saves decoding."""
    container = opened()
    frames, position = _frames(container, name), index.times[0]
    for time in wanted:
        if time < position:  # has no picture of its own; the one after it was given in its place
            continue
        key = index.keys[bisect_right(index.keys, time) - 1]
        if position < key <= time:
            frames = _frames(container, name, key)
        frame = _first_at(frames, time)
        if frame is None or frame.pts > time:  # a jump can go too far where a file has no table of its key frames
            container = opened()
            frames = _frames(container, name)
            frame = _first_at(frames, time)
        if frame is None:
            raise ImageError(f"{name} is damaged: its last pictures cannot be decoded; copy or download it again")
        position = frame.pts + 1
        yield frame


def _frames(container: Any, name: str, key: int | None = None) -> Iterator[Any]:
    """The frames from a key frame's time on, or from where a container that was just opened stands."""
    stream = _pictures(container, name)
    if key is not None:
        container.seek(key, stream=stream)
    return _all(container.decode(stream))


def _all(items: Iterator[Any]) -> Iterator[Any]:
    """Until the end, where PyAV stumbles over streams that came up in the midst of the file, as broadcasts have them."""
    with suppress(IndexError):
        yield from items


def _first_at(frames: Iterator[Any], time: int) -> Any | None:
    return next((frame for frame in frames if frame.pts is not None and frame.pts >= time), None)


def _upright(frame: Any) -> Image.Image:
    picture = to_rgb(Image.fromarray(frame.to_ndarray(format="rgba")))
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture  # both count degrees counterclockwise


def _complaint(name: str, error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return f"{name}: no such file; give a video's path"
        case IsADirectoryError():
            return f"{name} is a folder; give a video inside it"
        case PermissionError():
            return f"{name} cannot be read: permission denied; change its permissions or copy it"
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    return f"{name} is damaged or cut short ({reason}); copy or download it again"
