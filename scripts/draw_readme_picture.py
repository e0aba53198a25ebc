"""Draws docs/demo.png: what the bundled checkpoint finds in its example picture and in three fresh scenes.

Usage: python scripts/draw_readme_picture.py [OUT.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mlx_paligemma import generate, load
from mlx_paligemma.common.draw import draw_detections
from mlx_paligemma.demo.scenes import draw_scene

SIDE, GAP = 300, 12


def main(out: Path) -> None:
    """Segment every shape that the caption names, and put the pictures side by side."""
    model, processor = load()
    root = Path(__file__).parent.parent
    pictures = [Image.open(root / "mlx_paligemma" / "demo" / "shapes.png")]
    pictures += [draw_scene(np.random.default_rng([77, seed]), size=448, count=3, number=False).image for seed in (1, 2, 3)]
    sheet = Image.new("RGB", (len(pictures) * (SIDE + GAP) - GAP, SIDE), "white")
    for index, picture in enumerate(pictures):
        caption = generate(model, processor, picture, "caption en").text
        found = []
        for name in caption.replace(" and ", ", ").split(", "):
            found += generate(model, processor, picture, f"segment {name.split(' ', 1)[1]}").detections
        print(f"{caption}: {len(found)} found")
        drawn = draw_detections(picture.convert("RGB"), found)
        drawn.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(drawn, (index * (SIDE + GAP) + (SIDE - drawn.width) // 2, (SIDE - drawn.height) // 2))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/demo.png"))
