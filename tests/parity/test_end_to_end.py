"""From pixels and tokens to logits: MLX equals the reference at every position, and both obey the rules of who sees whom."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoints import IMAGE_TOKEN

from mlx_paligemma.common.processor import ModelInputs

from .batches import BATCHES, random_inputs, random_suffix, tokens, with_suffix
from .compare import LOGITS_LIMIT, mlx_decoded, mlx_logits, relative_error, report, torch_decoded, torch_logits
from .tiny_models import Pair, config_json, write_pair

# What a rule forbids to change may differ by rounding, what it must change differs by far more than that.
VISIBLE = 1000 * LOGITS_LIMIT


@pytest.fixture(params=["mlx", "torch"])
def backend(request) -> str:
    return request.param


def logits(pair: Pair, inputs: ModelInputs, backend: str) -> np.ndarray:
    return mlx_logits(pair.model, inputs) if backend == "mlx" else torch_logits(pair.reference, inputs)


def decoded(pair: Pair, inputs: ModelInputs, suffix: np.ndarray, chunks: list[int], backend: str) -> np.ndarray:
    if backend == "mlx":
        return mlx_decoded(pair.model, inputs, suffix, chunks)
    return torch_decoded(pair.reference, inputs, suffix, chunks)


def change(pair: Pair, inputs: ModelInputs, changed: ModelInputs, backend: str) -> np.ndarray:
    """float [B, L]: how far the logits of each position move, relative to the largest logit."""
    before, after = logits(pair, inputs, backend), logits(pair, changed, backend)
    return np.abs(after - before).max(-1) / np.abs(before).max()


def with_token(inputs: ModelInputs, row: int, column: int) -> ModelInputs:
    """One text token replaced by another."""
    ids = inputs.input_ids.copy()
    assert ids[row, column] not in (0, IMAGE_TOKEN)
    ids[row, column] = 3 + (ids[row, column] + 500) % (IMAGE_TOKEN - 3)
    return replace(inputs, input_ids=ids)


@pytest.mark.parametrize("batch", BATCHES)
def test_mlx_gives_the_references_logits_at_every_position(pair, batch):
    prefixes, suffixes, pictures = BATCHES[batch]
    inputs = random_inputs(pair.config, prefixes, suffixes, pictures)
    real = tokens(inputs)
    error = relative_error(mlx_logits(pair.model, inputs)[real], torch_logits(pair.reference, inputs)[real])
    report(f"{batch}: {error:.1e}")
    assert error <= LOGITS_LIMIT


@pytest.mark.parametrize("chunks", [[1] * 64, [5, 1, 8, 3, 9, 1, 17, 20], [64]], ids=["one by one", "in chunks", "at once"])
@pytest.mark.parametrize("prefixes", [(9,), (12, 9, 5)], ids=["one row", "a left-padded batch"])
def test_64_decoded_tokens_equal_the_forward_pass_over_them(pair, backend, prefixes, chunks):
    prompts = random_inputs(pair.config, prefixes)
    suffix = random_suffix(len(prefixes), 64)
    whole = with_suffix(prompts, suffix)
    reference = torch_logits(pair.reference, whole)[:, -65:]
    error = relative_error(decoded(pair, prompts, suffix, chunks, backend), reference)
    report(f"{error:.1e}")
    assert error <= LOGITS_LIMIT


def test_a_prompt_with_two_pictures_decodes_as_the_forward_pass_does(pair, backend):
    prompts = random_inputs(pair.config, (6, 4), pictures=(2, 1))
    suffix = random_suffix(2, 12)
    reference = torch_logits(pair.reference, with_suffix(prompts, suffix))[:, -13:]
    assert relative_error(decoded(pair, prompts, suffix, [1] * 12, backend), reference) <= LOGITS_LIMIT


@pytest.mark.parametrize("suffixes", [None, (9, 4, 12)], ids=["prompts", "prompts and suffixes"])
def test_a_row_of_a_batch_equals_the_row_alone(pair, backend, suffixes):
    inputs = random_inputs(pair.config, (12, 9, 5), suffixes, (1, 3, 2))
    batch = logits(pair, inputs, backend)
    for row in range(3):
        alone = logits(pair, single(inputs, row, pair), backend)[0]
        assert relative_error(batch[row][tokens(inputs)[row]], alone) <= LOGITS_LIMIT


def single(inputs: ModelInputs, row: int, pair: Pair) -> ModelInputs:
    """One row without padding and without pictures that are not its own."""
    ids = inputs.input_ids[row][tokens(inputs)[row]]
    pictures = int((ids == IMAGE_TOKEN).sum()) // pair.config.vision.num_patches
    prefix = None if inputs.prefix_length is None else inputs.prefix_length[row : row + 1]
    return ModelInputs(ids[None], inputs.pixel_values[row : row + 1, :pictures], None, prefix)


@pytest.mark.parametrize("suffixes", [None, (9, 4, 12)], ids=["prompts", "prompts and suffixes"])
def test_what_stands_in_the_padding_changes_nothing(pair, backend, suffixes):
    inputs = random_inputs(pair.config, (12, 9, 5), suffixes)
    noise = np.random.default_rng(3).integers(3, IMAGE_TOKEN, inputs.input_ids.shape).astype(np.int32)
    changed = replace(inputs, input_ids=np.where(tokens(inputs), inputs.input_ids, noise))
    assert not np.array_equal(inputs.input_ids, changed.input_ids)
    assert (change(pair, inputs, changed, backend)[tokens(inputs)] == 0).all()


def test_what_fills_the_places_of_absent_pictures_changes_nothing(pair, backend):
    inputs = random_inputs(pair.config, (8, 3), pictures=(1, 3))
    pixels = inputs.pixel_values.copy()
    pixels[0, 1:] = 0
    assert (change(pair, inputs, replace(inputs, pixel_values=pixels), backend)[tokens(inputs)] == 0).all()


def test_the_last_prefix_token_changes_every_position(pair, backend):
    inputs = random_inputs(pair.config, (9,), (14,))
    moved = change(pair, inputs, with_token(inputs, 0, int(inputs.prefix_length[0]) - 1), backend)
    if pair.config.text.sliding_window is None:
        assert (moved > VISIBLE).all()
    else:  # layers without a window carry it beyond the window too
        assert (moved[0, : inputs.prefix_length[0]] > VISIBLE).all() and (moved > LOGITS_LIMIT).all()


def test_a_suffix_token_changes_itself_and_later_positions_alone(pair, backend):
    inputs = random_inputs(pair.config, (9, 6), (14, 8))
    start = inputs.input_ids.shape[1] - 5
    moved = change(pair, inputs, with_token(inputs, 1, start), backend)
    assert (moved[0] == 0).all() and (moved[1, :start] == 0).all()
    assert (moved[1, start:] > VISIBLE).all()


def test_the_second_picture_of_a_batch_changes_the_second_row_alone(pair, backend):
    inputs = random_inputs(pair.config, (9, 6, 7), (3, 5, 4))
    pixels = inputs.pixel_values.copy()
    pixels[1] = -pixels[1]
    moved = change(pair, inputs, replace(inputs, pixel_values=pixels), backend)
    assert (moved[[0, 2]] == 0).all()
    assert (moved[1][tokens(inputs)[1]] > VISIBLE).all()


def test_two_pictures_of_a_row_cannot_trade_places(pair, backend):
    inputs = random_inputs(pair.config, (9,), pictures=(2,))
    moved = change(pair, inputs, replace(inputs, pixel_values=inputs.pixel_values[:, ::-1].copy()), backend)
    assert (moved > VISIBLE).all()


def test_the_table_row_of_the_image_token_enters_no_hidden_state(pair, backend):
    inputs = random_inputs(pair.config, (9, 6), (3, 5))
    before = logits(pair, inputs, backend)
    broken = Pair.load(pair.folder)
    broken.reference.language_model.embed_tokens.weight[IMAGE_TOKEN] += 3
    table = broken.model.language_model.embed_tokens
    table.weight[IMAGE_TOKEN] += 3
    others = np.arange(before.shape[-1]) != IMAGE_TOKEN  # the head is the same table, so its own column does move
    after = logits(broken, inputs, backend)
    assert np.array_equal(after[..., others], before[..., others]) and not np.array_equal(after, before)


def test_with_a_window_of_8_a_suffix_token_sees_itself_and_the_7_before_it(tmp_path, backend):
    """One layer, so that nothing is handed on: the last prefix token reaches 7 positions further, and the whole prefix."""
    inputs, moved = None, {}
    for kind in ("sliding_attention", "full_attention"):
        pair = write_pair(tmp_path / kind, config_json(2, num_hidden_layers=1, layer_types=[kind]))
        inputs = random_inputs(pair.config, (9,), (36,))
        moved[kind] = change(pair, inputs, with_token(inputs, 0, int(inputs.prefix_length[0]) - 1), backend)[0]
    last = int(inputs.prefix_length[0]) - 1
    assert (moved["sliding_attention"][: last + 8] > VISIBLE).all() and (moved["sliding_attention"][last + 8 :] == 0).all()
    assert (moved["full_attention"] > LOGITS_LIMIT).all()
