"""transformers' own PaliGemma in float32 as one side of a comparison: its modules by our names, their arguments in our form.

token_type_ids and attention_mask are always given and attention is eager: without them transformers' result depends on the
attention implementation, and the prefix becomes causal. Its cache throws old keys away on sliding layers, so
decoding is compared by its logits, and not module by module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.checkpoint import Checkpoint
from ..common.errors import BackendError, CheckpointError
from ..common.processor import ModelInputs
from ..common.tensors import canonical_name
from .call import Call
from .greedy import GreedyRun, follow
from .recording import Sink, plain
from .scenes import Scenes
from .torch_reference import decoded_call, last, memory_errors

if TYPE_CHECKING:
    from torch import Tensor, nn

OLDEST = (5, 4)
FAULTS = (  # the first version without a fault, and the fault
    ((4, 41, 1), "masks nothing in the suffix (pull 30967)"),
    ((4, 48, 1), "lets padding be seen (issue 35855)"),
    ((4, 50, 0), "cuts the window of PaliGemma 2 wrongly (issue 35681)"),
    ((4, 57, 0), "masks by a training flag, so that prompts may be causal (pull 40917)"),
    ((5, 4, 0), "rounds image rows twice on their way through sqrt(d) (pull 44432)"),
)


def check_version(version: str) -> None:
    """Raises BackendError for a version of transformers with a known fault."""
    number = tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:3])
    fault = next((text for fixed, text in FAULTS if number < fixed), None)
    if fault is not None:
        wanted = ".".join(map(str, OLDEST))
        raise BackendError(f"transformers {version} {fault}; install a later one: pip install 'transformers>={wanted}'")


class TransformersReference:
    """Loaded in float32; nothing is kept of it once this is gone."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu"):
        try:
            import transformers
        except ModuleNotFoundError:
            wanted = "pip install 'transformers==5.23.0'"
            raise BackendError(f"--against transformers needs the package transformers; install it with: {wanted}") from None
        check_version(transformers.__version__)
        if checkpoint.npz or checkpoint.packings:
            form = "big_vision's weights" if checkpoint.npz else "weights that MLX has quantised"
            wanted = f"mlx-paligemma convert --to hf --model {checkpoint.path} --mlx-path FOLDER"
            raise CheckpointError(f"transformers does not read {form}; compare what `{wanted}` makes of them")
        from torch_ref.device import choose_device

        self.device = choose_device(device)
        self.model = _load(checkpoint.folder).to(self.device)
        self.eos = checkpoint.config.eos_token_id  # the text model's own is a chat model's

    def record(self, scenes: Scenes, sink: Sink) -> None:
        """Run the batch once; each module's call goes to `sink` as it returns. Then the prompts and tokens through the cache."""
        with memory_errors(), _quietly():
            with _Hooks(sink, scenes.batch).watching(self.model):
                self.model(**self._arguments(scenes.batch), use_cache=False)
            logits, decode = self._prefill(scenes.prompts)
            sink.append(decoded_call([logits, *map(decode, scenes.decoded.T[..., None])]))

    def greedy(self, inputs: ModelInputs, steps: int) -> GreedyRun:
        """The likeliest tokens after one prompt, step by step with transformers' own cache."""
        with memory_errors(), _quietly():
            logits, decode = self._prefill(inputs)
            return follow(last(logits), lambda token: last(decode(np.array([[token]]))), self.eos, steps)

    def _prefill(self, inputs: ModelInputs) -> tuple[Tensor, Callable[[np.ndarray], Tensor]]:
        """Logits [B, 1, V] after the prompts, and what gives those after one more token [B, 1]."""
        import torch

        given = self._arguments(inputs)
        seen = given["attention_mask"]
        out = self.model(**given, use_cache=True)

        def decode(tokens: np.ndarray) -> Tensor:
            nonlocal seen, out
            new = torch.from_numpy(tokens.astype(np.int64)).to(self.device)
            seen = torch.cat([seen, torch.ones_like(new)], dim=1)
            out = self.model(input_ids=new, attention_mask=seen, past_key_values=out.past_key_values, use_cache=True)
            logits: Tensor = out.logits
            return logits

        return out.logits[:, -1:], decode

    def _arguments(self, inputs: ModelInputs) -> dict[str, Tensor]:
        """A batch as transformers takes it: all pictures in one list, without the fillers of ragged rows."""
        import torch

        counts = np.full(len(inputs.input_ids), inputs.pixel_values.shape[1]) if inputs.pictures is None else inputs.pictures
        pixels = np.concatenate([row[:count] for row, count in zip(inputs.pixel_values, counts, strict=True)])
        arrays = {
            "input_ids": inputs.input_ids.astype(np.int64),
            "pixel_values": pixels.transpose(0, 3, 1, 2).copy(),
            "attention_mask": inputs.attention_mask.astype(np.int64),
            "token_type_ids": inputs.token_type_ids.astype(np.int64),
        }
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}


class _Hooks:
    """Hooks on transformers' modules; what they see is noted under our names, with our arguments."""

    def __init__(self, sink: Sink, inputs: ModelInputs):
        self.sink, self.inputs = sink, inputs
        self.real = inputs.attention_mask.astype(bool)
        self.hidden: np.ndarray | None = None  # what the head is given

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        handles = [
            module.register_forward_hook(self._after(name, translate), with_kwargs=True)
            for path, module in model.named_modules()
            if (name := our_name(path)) is not None and (translate := self._translation(name)) is not None
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _translation(self, name: str) -> Callable[..., tuple[Any, ...]] | None:
        """From a module's arguments to those of its twin here; None for modules that have none."""
        tail = name.rpartition(".")[2]
        in_text = name.startswith("language_model.layers.")
        if name in ("language_model", ""):
            return self._whole
        if in_text and (tail == "self_attn" or tail.isdigit()):
            return self._with_mask
        if tail in ("act_fn", "activation_fn", "rotary_emb", "layers", "position_embedding", "model", "head"):
            return None
        return _first

    def _after(self, name: str, translate: Callable[..., tuple[Any, ...]]) -> Callable[..., None]:
        first = name.endswith("patch_embedding")

        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            result = plain(_tensor(output), first)
            path = "language_model.embed" if name == "language_model.embed_tokens" else name  # theirs scales the rows
            given = tuple(plain(value, first) for value in translate(name, arguments, named))
            if path in ("vision_tower", "vision_tower.embeddings"):
                given = (given[0].transpose(0, 2, 3, 1),)
            if path == "language_model":
                self.hidden = result
            if path == "lm_head":
                return  # the soft cap comes after it; the whole model's logits stand for both
            self._keep(Call(path, given, result, {}, "forward", self.real))

        return hook

    def _keep(self, call: Call) -> None:
        self.sink.append(call)
        if call.name == "" and self.hidden is not None:
            self.sink.append(Call("logits", (self.hidden,), call.output, {}, "forward", self.real))

    def _whole(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        inputs = self.inputs
        x = named["inputs_embeds"] if name else inputs.input_ids
        return (x, *(() if name else (inputs.pixel_values,)), inputs.padding, inputs.prefix_length)

    def _with_mask(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """Ours: x, the position of its first token, a mask of bools, no cache."""
        x = _first(name, arguments, named)[0]
        mask, positions = named.get("attention_mask"), named["position_ids"]
        return x, positions[:, 0].expand(len(x)), None if mask is None else mask >= 0, None


def our_name(path: str) -> str | None:
    """A module of transformers by our name: the key table of the checkpoints knows; None for those without a twin."""
    if path == "":
        return ""
    name = canonical_name(path)
    return None if name is None or name in ("model", "vision_tower.vision_model") else name


def _first(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    return (arguments[0] if arguments else next(iter(named.values())),)


def _tensor(output: Any) -> Tensor:
    """What counts of a module's output: the first of several, or the field that says so."""
    for field in ("logits", "last_hidden_state"):
        if hasattr(output, field):
            output = getattr(output, field)
    return output[0] if isinstance(output, tuple) else output


def _load(folder: Path) -> Any:
    import torch
    import transformers

    bars = transformers.utils.logging
    bars.disable_progress_bar()
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, local_files_only=True
    )
    return model.eval()


@contextmanager
def _quietly() -> Iterator[None]:
    import torch

    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
