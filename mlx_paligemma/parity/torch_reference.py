"""The reference of this project, torch_ref in float32, as one side of a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..common.checkpoint import Checkpoint
from ..common.errors import NumericError
from ..common.mask_codec import FILE_NAME
from ..common.processor import ModelInputs
from .call import DECODED, MASK_CODEC, Call
from .greedy import GreedyRun, follow
from .recording import Recorder, Sink
from .scenes import PIECE, Scenes, codec_inputs, fits_whole

WITH_CACHE = ("self_attn", "language_model", "prefill", "decode")  # what a prefill does in another way than a forward pass


class TorchReference:
    """Loaded in float32; nothing is kept of it once this is gone."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu"):
        from torch_ref.device import choose_device
        from torch_ref.weights import load_mask_codec, load_model

        self.device = choose_device(device)
        self.model = load_model(checkpoint, "float32", self.device)
        path = checkpoint.folder / FILE_NAME
        self.codec = load_mask_codec(path) if path.exists() else None

    def record(self, scenes: Scenes, sink: Sink) -> None:
        """Run everything once; each module's calls go to `sink` as they return."""
        with memory_errors(), _exactly():
            self._record_forward(scenes.batch, sink)
            self._record_decoding(scenes, sink)
            self._record_masks(sink)

    def greedy(self, inputs: ModelInputs, steps: int) -> GreedyRun:
        """The likeliest tokens after one prompt."""
        import torch

        with memory_errors(), _exactly():
            logits, cache = self._prefill(inputs, steps)

            def decode(token: int) -> np.ndarray:
                return last(self.model.decode(torch.tensor([[token]], device=self.device), cache))

            return follow(last(logits), decode, self.model.config.eos_token_id, steps)

    def _record_forward(self, inputs: ModelInputs, sink: Sink) -> None:
        from torch_ref.generation import as_torch

        recorder = Recorder(sink)
        recorder.scene, recorder.real = "forward", inputs.attention_mask.astype(bool)
        tensors = as_torch(inputs, self.device)
        with recorder.watching(self.model):
            if fits_whole(inputs, self.model.config):
                self.model(**tensors)
                return
            x = self.model.embed(tensors["input_ids"], self.model.encode_images(tensors["pixel_values"]))
            hidden = self.model.language_model(x, tensors.get("padding"), tensors.get("prefix_length"))
            recorder.real = None  # pieces of the positions, not all of them
            for piece in hidden.split(PIECE, dim=1):
                self.model.logits(piece)

    def _record_decoding(self, scenes: Scenes, sink: Sink) -> None:
        """The prompts through an empty cache, then tokens through the filled one."""
        import torch

        prefill = Recorder(sink, wanted=_uses_cache)
        prefill.scene, prefill.real = "prefill", scenes.prompts.attention_mask.astype(bool)
        with prefill.watching(self.model):
            logits, cache = self._prefill(scenes.prompts, scenes.decoded.shape[1])
        steps = Recorder(sink)
        steps.scene = "decode"
        with steps.watching(self.model):
            parts = [self.model.decode(torch.from_numpy(chunk).to(self.device), cache) for chunk in scenes.chunks]
        sink.append(decoded_call([logits, *parts]))

    def _prefill(self, inputs: ModelInputs, steps: int) -> tuple[Any, Any]:
        import torch

        from torch_ref.generation import as_torch
        from torch_ref.kv_cache import KVCache

        tensors = as_torch(inputs, self.device)
        batch, length = inputs.input_ids.shape
        cache = KVCache(self.model.config.text, batch, length + steps, torch.float32, tensors.get("padding"), self.device)
        rows = self.model.encode_images(tensors["pixel_values"])
        return self.model.prefill(tensors["input_ids"], rows, cache), cache

    def _record_masks(self, sink: Sink) -> None:
        import torch

        if self.codec is None:
            return
        recorder = Recorder(sink, prefix=MASK_CODEC)
        recorder.scene = "masks"
        masks, codes = codec_inputs(len(self.codec.vq_vae.embedding))
        with recorder.watching(self.codec):
            self.codec.encode(torch.from_numpy(masks))
            self.codec.decode(torch.from_numpy(codes))


@contextmanager
def memory_errors() -> Iterator[None]:
    """Out of memory in PyTorch as one line that says what shrinks it.

    Raises:
        NumericError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        raise NumericError(
            "the reference ran out of memory; shrink it with --no-batch and a smaller -m, or take a checkpoint of lower resolution"
        ) from None


def decoded_call(logits: list[Any]) -> Call:
    """The logits [B, s, V] of prefill and decoding steps as one entry."""
    return Call(DECODED, (), np.concatenate([part.float().cpu().numpy() for part in logits], axis=1), scene=DECODED)


def last(logits: Any) -> np.ndarray:
    """float32 [V], those of the last position of the only row."""
    values: np.ndarray = logits[0, -1].float().cpu().numpy()
    return values


@contextmanager
def _exactly() -> Iterator[None]:
    """No gradients; and float32 is float32 on CUDA too, whose convolutions round to ten bits by default."""
    import torch

    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def _uses_cache(name: str) -> bool:
    is_layer = name.startswith("language_model.") and name.rpartition(".")[2].isdigit()
    return is_layer or (name.endswith(WITH_CACHE) and not name.startswith("vision_tower"))
