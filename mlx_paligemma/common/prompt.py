"""The prompts that PaliGemma was trained on.

Sources: PaliGemma, arXiv:2407.07726, section 3.2; PaliGemma 2, arXiv:2412.03555. Languages are codes such as "en" or "de".
"""

from __future__ import annotations

SEPARATOR = " ; "  # between the things to locate


def caption(language: str = "en") -> str:
    """A caption in the style of COCO."""
    return f"caption {language}"


def answer(question: str, language: str = "en") -> str:
    """A short answer to a question about the picture."""
    return f"answer {language} {question}"


def ocr() -> str:
    """The text in the picture, from top left to bottom right."""
    return "ocr"


def detect(*things: str) -> str:
    """A box around each object of each kind."""
    return f"detect {SEPARATOR.join(things)}"


def segment(*things: str) -> str:
    """A box and a mask for each object of each kind."""
    return f"segment {SEPARATOR.join(things)}"
