"""Tables as HTML: unlike Gradio's they are as narrow as a phone, and any reader of pages can read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; every text in it is shown as it is, whatever it holds."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in headers)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="plain"><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
