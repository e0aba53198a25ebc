"""The mask codec in MLX equals the one in PyTorch layer by layer, decodes the same masks and encodes to the same codes."""

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_paligemma import weights as mlx_weights
from mlx_paligemma.common.mask_codec import FILE_NAME, MaskCodecConfig
from torch_ref import weights as torch_weights

from .compare import MODULE_LIMIT, blamed, compare, compare_each, record, relative_error, report, worst
from .tiny_models import write_mask_codec

CONFIGS = {"tiny": MaskCodecConfig((4, 6, 8, 10), embedding_dim=12), "published": MaskCodecConfig()}
SIZES = {"tiny": None, "published": 8_479_556}  # bytes of the file


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    """Both backends' codecs, read from files in the published layout."""
    found = {}
    for name, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        write_mask_codec(folder, config)
        path = folder / FILE_NAME
        found[name] = (config, path, torch_weights.load_mask_codec(path), mlx_weights.load_mask_codec(path))
    return found


@pytest.fixture(params=CONFIGS)
def codec(codecs, request):
    return codecs[request.param]


def masks(count: int) -> np.ndarray:
    """float32 [count, 64, 64, 1] in [0, 1]: squares of 8 pixels, so that a part of 16 does not average out."""
    squares = np.random.default_rng(2).uniform(0, 1, (count, 8, 8, 1)).astype(np.float32)
    return squares.repeat(8, axis=1).repeat(8, axis=2)


def all_codes(config: MaskCodecConfig) -> np.ndarray:
    """int32 [num_codes / 16, 16]: each code once, in a random order."""
    return np.random.default_rng(3).permutation(config.num_codes).reshape(-1, 16).astype(np.int32)


def calls(codec):
    config, _, reference, _ = codec

    def run():
        reference.encode(torch.from_numpy(masks(2)))
        reference.decode(torch.from_numpy(all_codes(config)))

    return record(reference, run)


def test_the_published_layout_has_49_arrays_and_its_size(codecs):
    config, path, _, _ = codecs["published"]
    assert path.stat().st_size == SIZES["published"]
    with np.load(path) as file:
        assert {name: file[name].shape for name in file.files} == config.shapes()
        assert len(file.files) == 49


def test_every_layer_equals_the_reference_on_the_same_input(codec):
    differences = compare(calls(codec), codec[3])
    report(str(worst(differences)))
    assert blamed(differences) is None
    assert {"encode", "decode", "vq_vae", "vq_vae.nearest"} < {difference.name for difference in differences}
    assert {name for name, _ in codec[3].named_modules()} - {""} <= {difference.name for difference in differences}


def test_both_backends_decode_every_code_to_the_same_mask(codec):
    config, path, reference, model = codec
    codes = all_codes(config)
    wanted = reference.decode(torch.from_numpy(codes)).numpy()
    assert wanted.shape == (config.num_codes // 16, 64, 64, 1)
    assert relative_error(np.array(model.decode(mx.array(codes))), wanted) <= MODULE_LIMIT
    for weights in (torch_weights, mlx_weights):
        assert relative_error(weights.mask_functions(path.parent)[0](codes), wanted[..., 0]) <= MODULE_LIMIT


def test_both_backends_encode_masks_to_the_same_codes(codec):
    _, _, reference, model = codec
    wanted = reference.encode(torch.from_numpy(masks(8))).numpy()
    assert np.array_equal(np.array(model.encode(mx.array(masks(8)))), wanted)
    assert wanted.shape == (8, 16) and len(np.unique(wanted)) >= 10


def test_both_backends_are_the_network_that_the_paper_and_the_file_describe(codec):
    """Written a third time, in NumPy, from the description of the layers and under the names of the file."""
    config, path, reference, model = codec
    with np.load(path) as file:
        arrays = {name: file[name].astype(np.float64) for name in file.files}
    codes, pictures = all_codes(config)[:2], masks(2)
    wanted = np.stack([decoded(arrays, row) for row in codes])
    assert relative_error(reference.decode(torch.from_numpy(codes)).numpy()[..., 0], wanted) <= MODULE_LIMIT
    assert relative_error(np.array(model.decode(mx.array(codes)))[..., 0], wanted) <= MODULE_LIMIT
    expected = np.stack([encoded(arrays, picture[..., 0]) for picture in pictures])
    assert np.array_equal(reference.encode(torch.from_numpy(pictures)).numpy(), expected)


def decoded(arrays: dict[str, np.ndarray], codes: np.ndarray) -> np.ndarray:
    """Codes [16] -> mask [64, 64]."""
    x = arrays["_vq_vae._embedding"][codes].T.reshape(-1, 4, 4)
    x = np.maximum(convolved(arrays, "decoder.0", x), 0)
    x = residual(arrays, "decoder.3", residual(arrays, "decoder.2", x))
    for layer in ("decoder.4", "decoder.6", "decoder.8", "decoder.10"):
        x = np.maximum(enlarged(arrays, layer, x), 0)
    return convolved(arrays, "decoder.12", x)[0]


def encoded(arrays: dict[str, np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Mask [64, 64] -> codes [16]."""
    x = 2 * mask[None].astype(np.float64) - 1
    for layer in ("encoder.0", "encoder.2", "encoder.4", "encoder.6"):
        x = np.maximum(convolved(arrays, layer, x, stride=2, padding=1), 0)
    x = residual(arrays, "encoder.9", residual(arrays, "encoder.8", x))
    x = convolved(arrays, "encoder.10", x).reshape(-1, 16)
    return np.square(x.T[:, None] - arrays["_vq_vae._embedding"]).sum(-1).argmin(-1)


def residual(arrays: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    inner = np.maximum(convolved(arrays, f"{name}.net.0", x, padding=1), 0)
    inner = np.maximum(convolved(arrays, f"{name}.net.2", inner, padding=1), 0)
    return x + convolved(arrays, f"{name}.net.4", inner)


def convolved(arrays: dict[str, np.ndarray], name: str, x: np.ndarray, stride: int = 1, padding: int = 0) -> np.ndarray:
    kernel, bias = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    return np.tensordot(kernel, windows, axes=([1, 2, 3], [0, 3, 4])) + bias[:, None, None]


def enlarged(arrays: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    """The transposed convolution of 4 x 4, stride 2 and padding 1: every pixel paints a square, and squares overlap."""
    kernel, bias = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
    side = 2 * x.shape[1]
    out = np.zeros((kernel.shape[1], side + 2, side + 2))
    for row in range(4):
        for column in range(4):
            out[:, row : row + side : 2, column : column + side : 2] += np.tensordot(kernel[:, :, row, column].T, x, axes=1)
    return out[:, 1:-1, 1:-1] + bias[:, None, None]


def test_codes_lie_on_the_grid_row_by_row(codec):
    """A code's own 16 x 16 pixels move most; the convolutions carry some of it to its neighbours."""
    _, _, reference, model = codec
    codes = np.zeros((1, 16), dtype=np.int32)
    changed = codes.copy()
    changed[0, 6] = 1  # second row, third column
    for decode in (
        lambda codes: reference.decode(torch.from_numpy(codes)).numpy(),
        lambda codes: np.array(model.decode(mx.array(codes))),
    ):
        moved = np.abs(decode(changed) - decode(codes))[0, :, :, 0].reshape(4, 16, 4, 16).sum((1, 3))
        assert np.unravel_index(moved.argmax(), (4, 4)) == (1, 2)


@pytest.mark.parametrize("layer", ["decoder.4", "encoder.2", "decoder.2.net.2"])
def test_a_kernel_in_the_wrong_order_is_found_and_blamed(codecs, layer):
    _, path, _, _ = codecs["tiny"]
    model = mlx_weights.load_mask_codec(path)
    module = dict(model.named_modules())[layer]
    module.weight = module.weight[:, ::-1] if layer != "decoder.2.net.2" else module.weight.transpose(0, 2, 1, 3)
    failing = next(difference for difference in compare_each(calls(codecs["tiny"]), model) if difference.fails)
    assert failing.name == layer
