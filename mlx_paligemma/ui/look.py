"""How the page looks: Gradio's theme with the system's own fonts, since others would be fetched from the internet."""

from __future__ import annotations

import gradio as gr

# Gradio writes each rule a second time, inside its own container: it takes commas inside of :is() for the end of a selector.
CSS = """
.gradio-container { width: 100%; max-width: 1200px !important; margin: 0 auto !important; }
.gradio-container .tabs, .gradio-container main, .gradio-container main > .wrap { width: 100%; }
.title h1 { margin: 0; }
#loaded { margin-top: -12px; }
footer .divider { display: none; }

.actions button { padding-left: 8px; padding-right: 8px; white-space: nowrap; }
.line, .prompt { overflow-wrap: anywhere; }
.line strong { color: #b91c1c; }
.dark .line strong { color: #fca5a5; }
#answer textarea { font-size: 1.1em; }
textarea, .prompt code { unicode-bidi: plaintext; text-align: start; }

.found:not(.fullscreen) .image-container img { width: 100%; max-height: 70vh; object-fit: contain; }
.taken .label-clear-button { display: none; }
.tr-body .container.table { width: 56px; height: 56px; }
.tr-body td { padding: 4px; }

.listed .prose { max-height: 26rem; overflow: auto; }
.prose table.plain { width: 100%; margin: 0; border: 0; border-collapse: collapse; }
.prose table.plain caption { text-align: start; font-weight: 600; padding: 4px 0; }
.prose table.plain tr { border: 0; }
.prose table.plain th, .prose table.plain td {
  text-align: start; vertical-align: top; padding: 6px 12px 6px 0;
  border-width: 0 0 1px; border-style: solid; border-color: var(--border-color-primary);
}
.prose table.plain td { overflow-wrap: anywhere; unicode-bidi: plaintext; }
#objects td:nth-child(1), #objects td:nth-child(3) { white-space: nowrap; }
#objects td:nth-child(4) { min-width: 8.5em; }
#asked td:nth-child(1), #batch-table td:nth-child(1) { min-width: 7em; }

button:focus-visible, a:focus-visible, [tabindex]:focus-visible, label:has(input:focus-visible), input[type=range]:focus-visible {
  outline: 2px solid var(--primary-500) !important; outline-offset: 2px;
}

@media (max-width: 640px) {
  .gradio-container > .main { padding: 8px 12px !important; }
}
"""


def theme() -> gr.themes.Base:
    """For light and dark, as the visitor's system has it."""
    return gr.themes.Default(
        primary_hue="blue",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    ).set(  # contrast of 4.5 and more
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
