"""The web page, made with Gradio: `mlx-paligemma ui`. Only page files (`page.py` and the tabs) know Gradio."""
