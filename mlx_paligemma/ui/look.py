"""How the page looks: Gradio's theme with the system's own fonts, since others would be fetched from the internet."""

from __future__ import annotations

import gradio as gr

CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
.gradio-container .tabs, .gradio-container main, .gradio-container main > .wrap { width: 100%; }
.title h1 { margin-bottom: 0; }
footer .divider { display: none; }
.line, .prompt { overflow-wrap: anywhere; }
.line strong { color: #b91c1c; }
.dark .line strong { color: #fca5a5; }
table.plain { width: 100%; border-collapse: collapse; overflow-wrap: anywhere; }
table.plain caption { text-align: left; font-weight: 600; padding: 4px 0; }
table.plain th, table.plain td { text-align: left; vertical-align: top; padding: 4px 8px 4px 0; }
table.plain tr { border-bottom: 1px solid var(--border-color-primary); }
#answer textarea { font-size: 1.1em; }
"""


def theme() -> gr.themes.Base:
    """For light and dark, as the visitor's system has it."""
    return gr.themes.Default(
        primary_hue="blue",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    ).set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300")  # contrast of 4.5 and more
