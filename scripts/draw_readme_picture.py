"""Draws docs/demo.png: the bundled example picture, and what the bundled checkpoint finds in it.

Usage: python scripts/draw_readme_picture.py [OUT.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from mlx_paligemma import generate, load
from mlx_paligemma.common.draw import draw_detections

GAP = 12


def main(out: Path) -> None:
    """Segment every shape that the caption names, and put the picture and the drawing side by side."""
    model, processor = load()
    picture = Image.open(Path(__file__).parent.parent / "mlx_paligemma" / "demo" / "shapes.png").convert("RGB")
    caption = generate(model, processor, picture, "caption en").text
    found = []
    for name in caption.replace(" and ", ", ").split(", "):
        found += generate(model, processor, picture, f"segment {name.split(' ', 1)[1]}").detections
    print(f"{caption}: {len(found)} found")
    sheet = Image.new("RGB", (2 * picture.width + GAP, picture.height), "white")
    sheet.paste(picture, (0, 0))
    sheet.paste(draw_detections(picture, found), (picture.width + GAP, 0))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/demo.png"))
