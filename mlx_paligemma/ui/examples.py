"""Pictures and questions that come with the package; the bundled demo model answers them rightly."""

from __future__ import annotations

from pathlib import Path

from .tasks import Task

_DEMO = Path(__file__).parent.parent / "demo"
EXAMPLES = (  # picture, task, text
    (_DEMO / "shapes.png", Task.caption, ""),
    (_DEMO / "shapes.png", Task.question, "what color is the star?"),
    (_DEMO / "shapes.png", Task.segment, "heart ; star"),
    (_DEMO / "crosses.png", Task.detect, "cross"),
    (_DEMO / "number.png", Task.ocr, ""),
)
