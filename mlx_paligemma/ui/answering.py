"""One answer while it is made: its text as it grows, then the whole result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from ..common.errors import PaliGemmaError
from ..common.formats import Record, as_record, failed_record
from ..common.results import GenerationResult
from ..common.sampling import SamplingOptions
from .picture_file import read_picture
from .runners import MAX_ROWS, Runner
from .stop import Stop

INTERVAL = 0.05  # seconds between two states of the text; a page cannot draw more


def answer(
    runner: Runner, picture: Image.Image, prompt: str, options: SamplingOptions, stop: Stop
) -> Iterator[str | GenerationResult]:
    """The text as far as it is, again and again, then the result. Raises what `Runner.answering` raises."""
    text, told = "", 0.0
    with runner.answering(picture, prompt, options, stop) as generation:
        for chunks in generation:
            if stop.is_requested:
                break
            text += chunks[0].text if chunks[0] else ""
            if time.monotonic() - told >= INTERVAL:
                told = time.monotonic()
                yield text
        yield generation.results()[0]


def answer_files(
    runner: Runner, files: Mapping[str, Path], prompt: str, options: SamplingOptions, max_pixels: int, stop: Stop
) -> Iterator[Record]:
    """A record for each file by its name, in their order; one that cannot be answered has an error.

    Ends early where it is to stop, and stops where nobody wants more. Several are asked about at a time, so that they can be
    decoded together, all of the same model.
    """
    record = partial(_record, runner, prompt, options, max_pixels, stop)
    with runner.using(stop), ThreadPoolExecutor(MAX_ROWS, thread_name_prefix="batch") as threads:
        try:
            for found in threads.map(record, *zip(*files.items(), strict=True)):
                if found is not None:
                    yield found
        finally:
            stop.request()


def _record(
    runner: Runner, prompt: str, options: SamplingOptions, max_pixels: int, stop: Stop, name: str, file: Path
) -> Record | None:
    """None where it was to stop before the answer was whole."""
    if stop.is_requested:
        return None
    try:
        *_, result = answer(runner, read_picture(file, max_pixels, name), prompt, options, stop)
    except PaliGemmaError as error:
        return None if stop.is_requested else failed_record(name, prompt, str(error))
    assert isinstance(result, GenerationResult)
    return None if result.finish_reason == "cancelled" else as_record(name, prompt, result)
