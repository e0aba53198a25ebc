"""The two backends are one network written twice: each line of the mirror contract, read from the sources."""

import ast
import inspect
import re
from pathlib import Path

import mlx.core as mx
import mlx.nn as mlx_nn
import pytest
import torch
from checkpoints import config_json
from mlx.utils import tree_flatten

import mlx_paligemma.model
import torch_ref
from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.mask_codec import MaskCodecConfig
from mlx_paligemma.common.tensors import expected_shapes
from mlx_paligemma.model import mask_decoder as mlx_mask_decoder
from mlx_paligemma.model import paligemma as mlx_paligemma_file
from torch_ref import mask_decoder as torch_mask_decoder
from torch_ref import paligemma as torch_paligemma_file

MLX = Path(mlx_paligemma.model.__file__).parent
TORCH = Path(torch_ref.__file__).parent
FILES = ["gemma.py", "kv_cache.py", "mask_decoder.py", "paligemma.py", "siglip.py"]
TORCH_CLASSES = {"RoPE"}  # MLX ships it
TORCH_ARGUMENTS = {"device"}  # MLX has one memory
CONFIGS = {
    "PaliGemma 1": config_json("gemma"),
    "PaliGemma 2": config_json("gemma2", text={"num_key_value_heads": 2}),
    "PaliGemma 1 with a head of its own": config_json("gemma", tie_word_embeddings=False),
}


@pytest.fixture(params=FILES)
def twins(request) -> tuple[ast.Module, ast.Module]:
    """The same file of both backends."""
    return parsed(MLX / request.param), parsed(TORCH / request.param)


@pytest.fixture(params=CONFIGS)
def networks(request):
    config = PaliGemmaConfig.from_dict(CONFIGS[request.param])
    return config, mlx_paligemma_file.PaliGemma(config), torch_paligemma_file.PaliGemma(config)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef) and node.name not in TORCH_CLASSES}


def functions(node: ast.Module | ast.ClassDef) -> dict[str, ast.FunctionDef]:
    """Public functions or methods, and the constructor and the call, by the name that they have in MLX."""
    found = {item.name.replace("forward", "__call__"): item for item in node.body if isinstance(item, ast.FunctionDef)}
    return {name: item for name, item in found.items() if not name.startswith("_") or name in ("__init__", "__call__")}


def arguments(function: ast.FunctionDef) -> list[tuple[str, str | None]]:
    """Names and defaults, in order."""
    given = function.args
    names = [argument.arg for argument in [*given.posonlyargs, *given.args, *given.kwonlyargs]]
    defaults = [None] * (len(names) - len(given.defaults)) + [ast.unparse(default) for default in given.defaults]
    return [(name, default) for name, default in zip(names, defaults, strict=True) if name not in TORCH_ARGUMENTS]


def attributes(node: ast.ClassDef) -> list[str]:
    """What the constructor sets on self, in order."""
    init = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    targets = [target for item in ast.walk(init) if isinstance(item, (ast.Assign, ast.AnnAssign))
               for target in (item.targets if isinstance(item, ast.Assign) else [item.target])] if init else []  # fmt: skip
    flat = [leaf for target in targets for leaf in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [leaf.attr for leaf in flat if isinstance(leaf, ast.Attribute)]


def test_both_backends_have_the_same_files():
    assert sorted(path.name for path in MLX.glob("*.py") if path.name != "__init__.py") == FILES
    assert all((TORCH / name).is_file() for name in FILES)


def test_classes_have_the_same_names_in_the_same_order(twins):
    mlx, torch_ = twins
    assert list(classes(mlx)) == list(classes(torch_))


def test_classes_have_the_same_bases(twins):
    """nn.Module, or a class of the same file: no base is shared between the backends."""
    mlx, torch_ = twins
    for name, node in classes(mlx).items():
        bases = [ast.unparse(base) for base in node.bases]
        assert bases == [ast.unparse(base) for base in classes(torch_)[name].bases]
        assert set(bases) <= {"nn.Module", *classes(mlx)}


def test_public_functions_and_methods_have_the_same_names_in_the_same_order(twins):
    mlx, torch_ = twins
    assert list(functions(mlx)) == list(functions(torch_))
    for name, node in classes(mlx).items():
        assert list(functions(node)) == list(functions(classes(torch_)[name])), name


def test_arguments_have_the_same_names_order_and_defaults(twins):
    mlx, torch_ = twins
    pairs = [(mlx, torch_), *zip(classes(mlx).values(), classes(torch_).values(), strict=True)]
    for ours, theirs in pairs:
        for name, function in functions(ours).items():
            assert arguments(function) == arguments(functions(theirs)[name]), name


def test_attributes_have_the_same_names_in_the_same_order(twins):
    mlx, torch_ = twins
    for name, node in classes(mlx).items():
        assert attributes(node) == attributes(classes(torch_)[name]), name
    assert any(attributes(node) for node in classes(mlx).values())


def test_parameters_are_named_and_shaped_as_the_checkpoint_says(networks):
    config, model, reference = networks
    expected = expected_shapes(config)
    if not config.tie_word_embeddings:
        expected |= {"lm_head.weight": expected["language_model.embed_tokens.weight"]}
    assert {name: tuple(parameter.shape) for name, parameter in reference.named_parameters()} == expected
    assert {name: in_torch_layout(array.shape) for name, array in tree_flatten(model.parameters())} == expected
    assert not dict(reference.named_buffers())


def test_the_mask_codecs_parameters_are_those_of_the_file():
    config = MaskCodecConfig((2, 3, 4, 5), 6)
    model, reference = mlx_mask_decoder.MaskCodec(config), torch_mask_decoder.MaskCodec(config)
    kept = {name.replace("_vq_vae._", "vq_vae."): shape for name, shape in config.shapes().items() if "_ema_" not in name}
    assert {name: tuple(parameter.shape) for name, parameter in reference.named_parameters()} == kept
    transposed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, mlx_nn.ConvTranspose2d)}
    shapes = {name: in_torch_layout(array.shape) for name, array in tree_flatten(model.parameters())}
    assert {name: (shape[1], shape[0], *shape[2:]) if name in transposed else shape for name, shape in shapes.items()} == kept


def in_torch_layout(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Convolution kernels are [out, in, height, width] in PyTorch and [out, height, width, in] in MLX."""
    return (shape[0], shape[3], *shape[1:3]) if len(shape) == 4 else tuple(shape)


def test_modules_have_the_same_names_save_for_torchs_containers(networks):
    _, model, reference = networks
    containers = (torch.nn.ModuleList, torch.nn.Sequential)
    theirs = {name for name, module in reference.named_modules() if not isinstance(module, containers)}
    assert {name for name, _ in model.named_modules()} == theirs


def test_both_take_pictures_with_the_channels_last_and_give_logits_of_the_same_shape(networks):
    config, model, reference = networks
    size, tokens = config.vision.image_size, [[config.image_token_index] * config.vision.num_patches + [2, 9]]
    logits = model(mx.array(tokens), mx.zeros((1, 1, size, size, 3)))
    with torch.no_grad():
        theirs = reference(torch.tensor(tokens), torch.zeros(1, 1, size, size, 3))
    assert tuple(logits.shape) == tuple(theirs.shape) == (1, len(tokens[0]), config.text.vocab_size)


def test_no_model_file_passes_unnamed_arguments_through(twins):
    for tree in twins:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.Lambda)):
                assert node.args.kwarg is None and node.args.vararg is None
            assert not (isinstance(node, ast.Call) and any(keyword.arg is None for keyword in node.keywords))


def test_no_model_file_has_a_debug_flag_or_asks_for_the_backend(twins):
    forbidden = re.compile(r"^(output_\w+|return_\w+|debug|verbose|backend|trace|training)$")
    for tree in twins:
        names = [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]
        names += [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
        names += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        assert not [name for name in names if forbidden.match(name)]


@pytest.mark.parametrize("name", FILES)
def test_each_file_names_its_twin_and_its_axes(name):
    ours, theirs = (ast.get_docstring(parsed(folder / name)) or "" for folder in (MLX, TORCH))
    assert f"Mirror of torch_ref/{name}" in ours and f"Mirror of mlx_paligemma/model/{name}" in theirs
    for text in (ours, theirs):
        assert re.search(r"^Axes: ", text, re.MULTILINE) and "arXiv:" in text


FAST_PATH = ("fused", "guesses")  # arguments that the reference has no use for


def test_the_load_and_generation_functions_are_twins_too():
    import mlx_paligemma.generation
    import mlx_paligemma.weights
    import torch_ref.generation
    import torch_ref.weights

    for ours, theirs in ((mlx_paligemma.weights, torch_ref.weights), (mlx_paligemma.generation, torch_ref.generation)):
        twins = functions(ast.parse(inspect.getsource(theirs)))
        for name, function in functions(ast.parse(inspect.getsource(ours))).items():
            if name.startswith("_") and name not in twins:
                continue
            found = [argument for argument, _ in arguments(twins[name.replace("as_mlx", "as_torch")])]
            assert found == [argument for argument, _ in arguments(function) if argument not in FAST_PATH], name
