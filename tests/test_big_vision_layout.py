"""The arrays of big_vision mean what its einsums say: its formulas and the reference model give the same numbers."""

import numpy as np
import pytest
import torch
from big_vision_files import arrays, as_numpy, head_by_head, into_heads, out_of_heads, patch_kernel, write_npz
from checkpoints import IMAGE_TOKEN, config_json, tensors

from mlx_paligemma.common.big_vision import big_vision_arrays, read_big_vision
from mlx_paligemma.common.big_vision_layout import sources
from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.tensors import EMBEDDING, expected_shapes
from torch_ref.paligemma import PaliGemma

TOLERANCE = 1e-5  # of the largest value; float32 sums of at most 600 terms, twice in each of two layers
SIZES = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "hidden_size": 16, "intermediate_size": 20}
RNG = np.random.default_rng(1)


def numbers(*shape):
    return RNG.normal(0, 0.5, shape)


def data(model_type):
    return config_json(model_type, text=SIZES, vision={"num_attention_heads": 4, "intermediate_size": 28})


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_the_writer_of_these_tests_makes_kernels_for_the_einsums(heads):
    x, weight, back = numbers(2, 5, 12), numbers(heads * 4, 12), numbers(12, heads * 4)
    y = (x @ weight.T).reshape(2, 5, heads, 4)
    np.testing.assert_allclose(np.einsum("BTD,NDH->BTNH", x, head_by_head(weight, heads)), y)
    np.testing.assert_allclose(np.einsum("BTD,DNH->BTNH", x, into_heads(weight, heads)), y)
    np.testing.assert_allclose(np.einsum("BTNH,NHD->BTD", y, out_of_heads(back, heads)), y.reshape(2, 5, -1) @ back.T)


def test_the_writer_of_these_tests_makes_kernels_for_the_patches():
    patch, weight = numbers(1, 14, 14, 3), numbers(7, 3, 14, 14)
    ours = torch.nn.functional.conv2d(torch.from_numpy(patch).permute(0, 3, 1, 2), torch.from_numpy(weight))
    np.testing.assert_allclose(np.einsum("byxc,yxcd->bd", patch, patch_kernel(weight)), ours[..., 0, 0])


@pytest.mark.parametrize("gemma2", [False, True])
def test_the_sources_give_every_tensor_once(gemma2):
    config = PaliGemmaConfig.from_dict(data("gemma2" if gemma2 else "gemma"))
    layers = config.text.num_hidden_layers
    assert layers == config.vision.num_hidden_layers
    given = [name.format(i) for source in sources(gemma2) for name in source.names for i in range(layers if source.stacked else 1)]
    assert sorted(given) == sorted(expected_shapes(config))


@pytest.fixture(params=["gemma", "gemma2"])
def checkpoint(request, tmp_path):
    """Arrays with numbers of their own, not those of tensors turned round, and the reference model that was read from them."""
    shapes = arrays(as_numpy(tensors(data(request.param))), PaliGemmaConfig.from_dict(data(request.param)), IMAGE_TOKEN)
    made = {name: numbers(*array.shape).astype(np.float32) for name, array in shapes.items()}
    path = write_npz(tmp_path / "model.npz", made)
    model = PaliGemma(read_big_vision(path)[0])
    model.load_state_dict({name: torch.from_numpy(array) for name, array in big_vision_arrays(path)})
    return made, model


def close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours.detach().numpy() - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def layer_norm(x, made, name, layer=...):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * made[f"{name}/scale"][layer] + made[f"{name}/bias"][layer]


def vit_layer(x, made, layer):
    prefix = "img/Transformer/encoderblock/"
    attention = f"{prefix}MultiHeadDotProductAttention_0/"

    def side(name, y):
        return np.einsum("BTD,DNH->BTNH", y, made[f"{attention}{name}/kernel"][layer]) + made[f"{attention}{name}/bias"][layer]

    y = layer_norm(x, made, f"{prefix}LayerNorm_0", layer)
    q, k, v = side("query", y), side("key", y), side("value", y)
    weights = softmax(np.einsum("BTNH,BSNH->BNTS", q / np.sqrt(q.shape[-1]), k))
    heads = np.einsum("BNTS,BSNH->BTNH", weights, v)
    x = x + np.einsum("BTNH,NHD->BTD", heads, made[f"{attention}out/kernel"][layer]) + made[f"{attention}out/bias"][layer]
    y = layer_norm(x, made, f"{prefix}LayerNorm_1", layer)
    y = gelu(y @ made[f"{prefix}MlpBlock_0/Dense_0/kernel"][layer] + made[f"{prefix}MlpBlock_0/Dense_0/bias"][layer])
    return x + y @ made[f"{prefix}MlpBlock_0/Dense_1/kernel"][layer] + made[f"{prefix}MlpBlock_0/Dense_1/bias"][layer]


def test_the_picture_encoder_and_the_projector_compute_what_big_vision_computes(checkpoint):
    made, model = checkpoint
    picture = RNG.uniform(-1, 1, (2, 28, 28, 3)).astype(np.float32)
    patches = picture.reshape(2, 2, 14, 2, 14, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 14, 14, 3)
    x = np.einsum("bpyxc,yxcd->bpd", patches, made["img/embedding/kernel"]) + made["img/embedding/bias"] + made["img/pos_embedding"]
    for layer in range(2):
        x = vit_layer(x, made, layer)
    x = layer_norm(x, made, "img/Transformer/encoder_norm")
    close(model.encode_images(torch.from_numpy(picture)[:, None]), x @ made["img/head/kernel"] + made["img/head/bias"])


def rms_norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale)


def rope(x):
    """[B, T, N, H]."""
    timescale = 10_000 ** (2.0 / x.shape[-1] * np.arange(x.shape[-1] // 2))
    angles = (np.arange(x.shape[1])[:, None] / timescale)[:, None, :]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], -1)


def attention(x, made, layer, config):
    q = rope(np.einsum("BTD,NDH->BTNH", x, made["llm/layers/attn/q_einsum/w"][layer])) * config.query_scale
    k, v = np.einsum("BSD,cKDH->cBSKH", x, made["llm/layers/attn/kv_einsum/w"][layer])
    q = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])  # B T (K G) H -> B T K G H
    logits = np.einsum("BTKGH,BSKH->BKGTS", q, rope(k))
    if config.model_type == "gemma2":
        logits = 50 * np.tanh(logits / 50)
    encoded = np.einsum("BKGTS,BSKH->BTKGH", softmax(logits), v)
    encoded = encoded.reshape(*x.shape[:2], -1, v.shape[-1])
    return np.einsum("BTNH,NHD->BTD", encoded, made["llm/layers/attn/attn_vec_einsum/w"][layer])


def mlp(x, made, layer):
    gate, up = made["llm/layers/mlp/gating_einsum"][layer]
    return (gelu(x @ gate) * (x @ up)) @ made["llm/layers/mlp/linear"][layer]


def gemma_layer(x, made, layer, config):
    def after(name, y):
        return rms_norm(y, made[f"llm/layers/{name}/scale"][layer]) if config.model_type == "gemma2" else y

    normed = rms_norm(x, made["llm/layers/pre_attention_norm/scale"][layer])
    x = x + after("post_attention_norm", attention(normed, made, layer, config))
    return x + after("post_ffw_norm", mlp(rms_norm(x, made["llm/layers/pre_ffw_norm/scale"][layer]), made, layer))


def test_the_text_model_computes_what_big_vision_computes(checkpoint):
    made, model = checkpoint
    start = x = numbers(2, 5, 16).astype(np.float32)
    for layer in range(2):
        x = gemma_layer(x, made, layer, model.config.text)
    x = rms_norm(x, made["llm/final_norm/scale"])
    hidden = model.language_model(torch.from_numpy(start))
    close(hidden, x)
    logits = x @ made["llm/embedder/input_embedding"].T
    logits = 30 * np.tanh(logits / 30) if model.config.text.model_type == "gemma2" else logits
    close(model.logits(hidden)[..., :IMAGE_TOKEN], logits)


def test_the_rows_that_are_added_to_the_table_never_win(checkpoint):
    made, model = checkpoint
    logits = model.logits(torch.from_numpy(numbers(100, 1, 16).astype(np.float32)))
    assert logits.shape[-1] > len(made["llm/embedder/input_embedding"])
    assert logits[..., IMAGE_TOKEN:].max(-1).values.lt(logits[..., :IMAGE_TOKEN].max(-1).values).all()
    assert model.language_model.embed_tokens.weight.shape == expected_shapes(model.config)[EMBEDDING]
