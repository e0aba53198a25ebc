"""The reference on devices: which one it takes, what it computes in there, and that it keeps clear of what MPS gets wrong."""

import ast
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import tensors, write
from PIL import Image
from program import PICTURE, program
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import torch_ref
from mlx_paligemma.common.errors import OptionError
from torch_ref import device as devices
from torch_ref.device import available_devices, choose_device, choose_dtype, free_memory, has_bfloat16
from torch_ref.train import collate, suffix_loss

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Example:
    image: Image.Image
    prefix: str
    suffix: str


class Dtypes(TorchDispatchMode):
    """Notes the operation of every tensor that is made in float64 or complex128."""

    def __init__(self):
        super().__init__()
        self.count, self.wide = 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.count += len(tensors)
        self.wide |= {str(function) for tensor in tensors if tensor.dtype in (torch.float64, torch.complex128)}
        return made


def have(monkeypatch, *names):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in names)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in names)


@pytest.mark.parametrize(
    ("names", "taken"), [(("cuda", "mps"), "cuda"), (("cuda",), "cuda"), (("mps",), "mps"), ((), "cpu")]
)  # fmt: skip
def test_auto_takes_cuda_then_mps_then_the_cpu(monkeypatch, names, taken):
    have(monkeypatch, *names)
    assert choose_device().type == taken
    assert available_devices() == (*names, "cpu")


@pytest.mark.parametrize("name", ["cpu", "mps"])
def test_a_device_that_is_named_is_taken(monkeypatch, name):
    have(monkeypatch, "cuda", "mps")
    assert choose_device(name).type == name


@pytest.mark.parametrize("name", ["cuda", "tpu"])
def test_a_device_that_is_not_here_names_those_that_are(monkeypatch, name):
    have(monkeypatch, "mps")
    with pytest.raises(OptionError, match=rf"{name}.* choose mps, cpu or auto"):
        choose_device(name)


@pytest.mark.parametrize("name", available_devices())
def test_bfloat16_is_found_by_trying(name):
    assert has_bfloat16(torch.device(name)) or name == "mps"


@pytest.mark.parametrize("error", [TypeError("BFloat16 is not supported on MPS"), RuntimeError("not implemented")])
def test_a_device_that_refuses_bfloat16_has_none(monkeypatch, error):
    def refuse(*shape, **options):
        raise error

    monkeypatch.setattr(torch, "ones", refuse)
    assert not has_bfloat16(CPU)


def test_without_bfloat16_a_stored_one_becomes_float32_and_one_asked_for_is_refused(monkeypatch):
    assert choose_dtype("bfloat16", CPU, is_asked=False) == torch.bfloat16
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: False)
    assert choose_dtype("bfloat16", CPU, is_asked=False) == torch.float32
    assert choose_dtype("float16", CPU, is_asked=False) == torch.float16
    with pytest.raises(OptionError, match="no bfloat16 here; choose --dtype float32 or float16"):
        choose_dtype("bfloat16", CPU)


def test_a_checkpoint_in_bfloat16_loads_on_a_device_that_has_none(monkeypatch, tmp_path):
    folder = write(tmp_path, tensors(dtype=torch.bfloat16))

    def dtype(**asked):
        return torch_ref.load(folder, device="cpu", **asked)[0].language_model.embed_tokens.weight.dtype

    assert dtype() == torch.bfloat16
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: False)
    assert dtype() == torch.float32
    with pytest.raises(OptionError, match="no bfloat16"):
        dtype(dtype="bfloat16")


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 1}])
def test_generation_makes_no_float64(options):
    model, processor = torch_ref.load(device="cpu")
    with Dtypes() as seen:
        torch_ref.batch_generate(model, processor, [PICTURE, [PICTURE, PICTURE]], ["segment star", "ocr"], max_tokens=8, **options)
    assert seen.count > 1000
    assert seen.wide == set()


def test_training_makes_no_float64():
    model, processor = torch_ref.load(device="cpu")
    examples = [Example(Image.open(PICTURE), prefix, "a star") for prefix in ("caption en", "answer en what is this?")]
    with Dtypes() as seen:
        suffix_loss(model.requires_grad_(True), collate(processor, examples), 0).backward()
    assert seen.count > 1000
    assert seen.wide == set()


def test_a_float64_would_be_seen():
    with Dtypes() as seen:
        torch.ones(2) * torch.ones(2, dtype=torch.float64)
    assert len(seen.wide) == 2


def test_no_attention_relies_on_a_kernels_own_causal_mask():
    """MPS's causal kernel let tokens see later ones in half precision (pytorch issue 195910): masks are drawn here."""
    for path in Path(torch_ref.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {getattr(node, "attr", None), getattr(node, "id", None), getattr(node, "arg", None)}
            assert not names & {"scaled_dot_product_attention", "is_causal", "MultiheadAttention"}, path.name


@pytest.mark.parametrize("name", available_devices())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_later_answer_token_changes_no_earlier_logit(name, dtype):
    model, processor = torch_ref.load(dtype=dtype, device=name)
    logits = []
    for suffix in ("a red star and a blue ring", "a red star and a green ring"):
        inputs = processor([PICTURE], ["caption en"], [suffix])
        with torch.inference_mode():
            logits.append(model(**torch_ref.as_torch(inputs, name))[0].float().cpu().numpy())
    same = [bool(np.array_equal(*rows)) for rows in zip(*logits, strict=True)]
    changed = same.index(False)
    answer = int(inputs.prefix_length[0])
    assert answer + 4 < changed < len(same) - 1  # the first position that has read another word
    assert all(same[:changed]) and not any(same[changed:])


def test_free_memory_reaches_the_gpus_that_are_here_and_no_other(monkeypatch):
    called = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: called.append("cuda"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: called.append("mps"))
    for names in ((), ("mps",), ("cuda",)):
        have(monkeypatch, *names)
        free_memory()
    assert called == ["mps", "cuda"]


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_memory_is_freed_after_every_batch_of_a_run(monkeypatch, capfd, backend):
    import mlx.core as mx

    called = []
    place, name = (mx, "clear_cache") if backend == "mlx" else (devices, "free_memory")
    monkeypatch.setattr(place, name, lambda: called.append(name))
    run = program(monkeypatch, capfd)
    arguments = ("generate", *[PICTURE] * 3, "-p", "caption en", "-m", 1, "--batch-size", 2, "--backend", backend)
    assert run(*arguments)[0] == 0
    assert called == [name] * 2
