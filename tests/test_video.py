"""The right frames come out of a video, with their times, whatever the file; and what cannot be read is said in one line."""

import io
import os
import sys
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_paligemma.common import video
from mlx_paligemma.common.errors import BackendError, ImageError, OptionError
from mlx_paligemma.common.video import video_frames

FORMATS = {"mp4": "libx264", "mkv": "libx264", "ts": "libx264", "flv": "libx264", "avi": "mpeg4", "webm": "libvpx"}
FAST_START = {"movflags": "faststart"}  # the table of contents comes first, so that a cut file still has it
WIDTH, HEIGHT = 64, 48


@pytest.fixture
def write(tmp_path):
    """Write a video whose frame n has the red value 8 * n, or is noise; a key frame every ten frames."""
    av = pytest.importorskip("av", reason="the extra [video] is not installed")
    av.logging.set_level(None)

    def pixels(number, noise):
        shape = (HEIGHT, WIDTH, 3)
        if noise:
            return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        return np.full(shape, (8 * number % 256, 100, 200), dtype=np.uint8)

    def call(name, count, ticks=None, noise=False, options=None):
        path = tmp_path / name
        codec = FORMATS.get(path.suffix[1:], "libx264")
        with av.open(path, "w", options=options or {}) as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.gop_size, stream.bit_rate = 10, 4_000_000  # enough to keep the colours
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(pixels(number, noise), format="rgb24").reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = (ticks or range(count))[number], Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return call


def number_of(frame):
    """Which frame of `write` it is; lossy codecs shift the colours a little."""
    return round(frame.image.getpixel((WIDTH // 2, HEIGHT // 2))[0] / 8)


def refusal(path, count=3):
    with pytest.raises(ImageError) as caught:
        video_frames(path, count)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


@pytest.mark.parametrize("ending", FORMATS)
def test_frames_are_those_in_the_middles_of_equal_parts(write, ending):
    frames = video_frames(write(f"video.{ending}", 30), 3)
    assert [number_of(frame) for frame in frames] == [5, 15, 25]
    assert [frame.seconds for frame in frames] == pytest.approx([0.5, 1.5, 2.5], abs=0.002)  # some files count milliseconds
    assert {(frame.image.mode, frame.image.size) for frame in frames} == {("RGB", (WIDTH, HEIGHT))}


@pytest.mark.parametrize("ending", FORMATS)
def test_every_frame_comes_once_where_as_many_are_wanted_as_there_are_or_more(write, ending):
    path = write(f"video.{ending}", 31)
    for count in (31, 100):
        frames = video_frames(path, count)
        assert [number_of(frame) for frame in frames] == [*range(31)]
        assert [frame.seconds for frame in frames] == pytest.approx([number / 10 for number in range(31)], abs=0.002)


def test_the_frames_of_uneven_times_are_those_that_are_on_screen_in_the_middles(write):
    path = write("video.mkv", 5, ticks=[0, 1, 2, 20, 38])  # 3.9 s long, the last frame for as long as the shortest
    assert [frame.seconds for frame in video_frames(path, 4)] == pytest.approx([0.2, 2.0], abs=0.002)  # at 0.5, 1.5, 2.4, 3.4 s


def test_an_animated_gif_is_a_video(tmp_path):
    pytest.importorskip("av", reason="the extra [video] is not installed")
    first, *others = (Image.new("RGB", (20, 10), color) for color in ("red", "lime", "blue"))
    first.save(tmp_path / "animated.gif", save_all=True, append_images=others, duration=[1000, 100, 100])
    frames = video_frames(tmp_path / "animated.gif", 4)  # at 0.15, 0.45, 0.75 and 1.05 s
    assert [frame.seconds for frame in frames] == pytest.approx([0, 1.0])
    assert [frame.image.getpixel((15, 8)) for frame in frames] == [(255, 0, 0), (0, 255, 0)]


def test_transparency_is_laid_on_white(tmp_path):
    pytest.importorskip("av", reason="the extra [video] is not installed")
    frames = [Image.new("RGBA", (20, 10), (0, 0, 0, alpha)) for alpha in (0, 51)]
    frames[0].save(tmp_path / "animated.apng", save_all=True, append_images=frames[1:], duration=100, blend=0)
    assert [frame.image.getpixel((5, 5)) for frame in video_frames(tmp_path / "animated.apng", 2)] == [(255,) * 3, (204,) * 3]


def test_a_telephone_held_upright_gives_upright_pictures(write):
    path = write("video.mp4", 3, noise=True)
    plain = video_frames(path, 1)[0].image
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # the track header's transformation: nine numbers of four bytes
    for place, value in zip((0, 4, 12, 16), (0, 1 << 16, -1 << 16, 0), strict=True):  # a quarter turn clockwise
        data[matrix + place : matrix + place + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    turned = video_frames(path, 1)[0].image
    assert turned.size == (HEIGHT, WIDTH)
    assert turned.tobytes() == plain.transpose(Image.Transpose.ROTATE_270).tobytes()  # Pillow counts counterclockwise


def test_a_few_frames_of_a_long_video_cost_the_decoding_of_a_few(write, monkeypatch):
    path, decoded, real = write("video.mp4", 400), [], video._all

    def counting(items):
        for item in real(items):
            decoded.append(hasattr(item, "to_ndarray"))
            yield item

    monkeypatch.setattr(video, "_all", counting)
    assert [frame.seconds for frame in video_frames(path, 4)] == pytest.approx([5, 15, 25, 35])
    assert sum(decoded) <= 4 * 10  # no more than a key frame's followers each


@pytest.mark.parametrize("name", ["video.mp4", "video.mkv", "video.avi", "video.flv"])
def test_a_video_that_was_cut_is_refused_also_where_the_wanted_frames_are_still_there(write, name):
    path = write(name, 60, noise=True, options=FAST_START if name.endswith("mp4") else None)
    data = path.read_bytes()
    assert video_frames(path, 1)
    path.write_bytes(data[: len(data) * 6 // 10])
    assert "cut short" in refusal(path, 1)


def test_a_video_damaged_in_the_middle_is_refused(write):
    path = write("video.mp4", 60, noise=True, options=FAST_START)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start + 100 :] = bytes(len(data) - start - 100)
    path.write_bytes(data)
    assert "damaged" in refusal(path)


def test_frames_without_times_are_refused_with_a_way_out(write):
    assert "MP4" in refusal(write("video.h264", 12))


@pytest.mark.parametrize("content", [b"", b"plain words, no video\n" * 100, os.urandom(5000)], ids=["empty", "text", "noise"])
def test_a_file_that_is_no_video_is_refused(tmp_path, content):
    pytest.importorskip("av", reason="the extra [video] is not installed")
    for name in ("notes.txt", "notes.mp4"):
        (tmp_path / name).write_bytes(content)
        assert "not a video" in refusal(tmp_path / name)


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile {}\n", "#EXTM3U\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n"])
def test_a_playlist_cannot_reach_other_files(write, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "list.mp4"
    path.write_text(text.format(write("video.ts", 30).name))
    assert "not a video" in refusal(path)


def test_sound_alone_is_refused(tmp_path):
    pytest.importorskip("av", reason="the extra [video] is not installed")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    assert "no moving pictures" in refusal(tmp_path / "sound.wav")


def test_the_cover_of_a_song_is_no_video(tmp_path):
    av = pytest.importorskip("av", reason="the extra [video] is not installed")
    song, cover = tmp_path / "song.mp3", io.BytesIO()
    with av.open(song, "w") as container:
        stream = container.add_stream("mp3", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 44100), dtype=np.int16), format="s16", layout="stereo")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    Image.new("RGB", (32, 32)).save(cover, "PNG")
    picture = b"\0image/png\0\3\0" + cover.getvalue()
    field = b"APIC" + len(picture).to_bytes(4, "big") + bytes(2) + picture
    size = bytes(len(field) >> shift & 127 for shift in (21, 14, 7, 0))  # seven bits per byte
    song.write_bytes(b"ID3\3\0\0" + size + field + song.read_bytes())
    with av.open(song) as container:
        assert len(container.streams.video) == 1
    assert "no moving pictures" in refusal(song)


def test_a_stream_that_comes_up_in_the_midst_of_a_file_ends_the_reading_without_an_error():
    def items():  # as PyAV's own iterators do it at their end
        yield from "ab"
        raise IndexError("list index out of range")

    assert [*video._all(items())] == ["a", "b"]


def test_a_missing_file_and_a_folder_are_named_in_one_line(tmp_path):
    pytest.importorskip("av", reason="the extra [video] is not installed")
    assert "no such file" in refusal(tmp_path / "missing.mp4")
    assert "folder" in refusal(tmp_path)
    with pytest.raises(ImageError, match=r"^two\?lines.mp4: no such file[^\n]*$"):
        video_frames("two\nlines.mp4", 1)


def test_fewer_than_one_frame_is_a_wrong_option(tmp_path):
    with pytest.raises(OptionError, match="at least 1"):
        video_frames(tmp_path / "any.mp4", 0)


def test_without_pyav_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    with pytest.raises(BackendError, match=r"pip install 'mlx-paligemma\[video\]'"):
        video_frames(Path(tmp_path) / "any.mp4", 1)
