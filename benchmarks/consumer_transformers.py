"""transformers as a reader of our folders: what it makes of a picture and a prompt. For consumers.py."""

from __future__ import annotations

import json
import sys

import numpy as np
import torch


def main(folder: str, picture: str, prompt: str, tokens: int, output: str) -> None:
    """Load with transformers' own classes; save ids, pixels, logits of the prompt, and greedy tokens with log probabilities."""
    from PIL import Image
    from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    model = PaliGemmaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager", local_files_only=True).eval()
    given = processor(images=Image.open(picture), text=f"<image>{prompt}", return_tensors="pt")
    given["token_type_ids"] = torch.zeros_like(given["input_ids"])  # without them its prefix is causal
    settings = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        logits = model(**given).logits
        made = model.generate(**given, max_new_tokens=tokens, **settings)
    np.savez(
        output,
        ids=given["input_ids"].numpy(),
        pixels=given["pixel_values"].numpy(),
        logits=logits.numpy(),
        tokens=made.sequences[0, given["input_ids"].shape[1] :].numpy(),
        logprobs=torch.cat(made.logits).log_softmax(-1).numpy(),
    )


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
