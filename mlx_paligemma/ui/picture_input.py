"""Where a picture comes in: dropped, chosen, pasted or from the camera, and looked at before it is asked about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from ..common.errors import ImageError, PromptError
from .events import PRIVATE
from .picture_file import is_shown_by_browsers, read_picture, save_for_browsers
from .plain_text import warn
from .settings import Settings
from .site import Site
from .uploads import of_uploads


def picture_input(site: Site) -> gr.Image:
    """The component, in the block that is open. It gives the path of the uploaded file."""
    picture = of_uploads(gr.Image, preprocess=_path)(
        type="filepath",
        label="Picture",
        sources=["upload", "webcam", "clipboard"],
        webcam_options=gr.WebcamOptions(mirror=False),  # mirrored text cannot be read
        height=340,
        buttons=["fullscreen"],
        elem_classes="picture",
    )
    picture.input(lambda path: _looked_at(path, site), picture, picture, show_progress="hidden", **PRIVATE)
    return picture


def open_picture(path: str | None, settings: Settings) -> Any:
    """The picture, RGB. Raises PromptError where there is none, ImageError where it cannot be read."""
    if not path:
        raise PromptError("there is no picture yet; drop one, or choose an example")
    return read_picture(Path(path), settings.max_image_pixels)


def _path(component: gr.Image, payload: Any) -> str | None:
    """Gradio would open the file itself, and all it says of a bad one is "Error"."""
    return None if payload is None else payload.path


def _looked_at(path: str | None, site: Site) -> Any:
    """The same picture; as JPEG where browsers cannot show it, and none where it is none."""
    if path is None:
        return None
    try:
        picture = read_picture(Path(path), site.settings.max_image_pixels)
    except ImageError as error:
        warn(str(error))
        return None
    return gr.skip() if is_shown_by_browsers(Path(path)) else str(save_for_browsers(site.new_folder(), picture, path))
