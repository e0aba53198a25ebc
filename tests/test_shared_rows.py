"""Rows that come and go while others decode: each gets the logits that it would get alone."""

import mlx.core as mx
import numpy as np
import pytest
from parity.batches import random_inputs
from parity.compare import relative_error
from parity.tiny_models import config_json, write_pair

from mlx_paligemma.decode_step import Decoding, capacity_for
from mlx_paligemma.fusion import FusedPaliGemma, fuse
from mlx_paligemma.generation import as_mlx
from mlx_paligemma.model.kv_cache import KVCache
from mlx_paligemma.serve.shared_rows import SharedRows

LIMIT = 5e-6  # of the largest logit, float32: the same products in another order
TOKENS = np.random.default_rng(4).integers(3, 60, (5, 12)).astype(np.int32)  # that each of five rows goes on with
LENGTHS = (12, 5, 9, 5, 14)  # of their prompts


@pytest.fixture(scope="module", params=[1, 2], ids=["PaliGemma 1", "PaliGemma 2"])
def model(request, tmp_path_factory) -> FusedPaliGemma:
    return fuse(write_pair(tmp_path_factory.mktemp("tiny"), config_json(request.param)).fresh_model())


def prefilled(model: FusedPaliGemma, row: int) -> KVCache:
    inputs = random_inputs(model.config, (LENGTHS[row],), seed=row)
    arrays = as_mlx(inputs)
    cache = KVCache(model.config.text, 1, capacity_for(inputs.input_ids.shape[1]), mx.float32)
    model.prefill(arrays["input_ids"], model.encode_images(arrays["pixel_values"]), cache)
    return cache


def alone(model: FusedPaliGemma, row: int, steps: int) -> np.ndarray:
    """Logits [steps, V] of a row that nobody shares with."""
    inputs = random_inputs(model.config, (LENGTHS[row],), seed=row)
    arrays = as_mlx(inputs)
    cache = KVCache(model.config.text, 1, capacity_for(inputs.input_ids.shape[1] + steps), mx.float32)
    model.prefill(arrays["input_ids"], model.encode_images(arrays["pixel_values"]), cache)
    decode = Decoding(model.step, cache)
    return np.array(mx.concatenate([decode(mx.array(TOKENS[row, None, step : step + 1]))[0] for step in range(steps)]))


class Table:
    """Rows at one table, and what each has been told so far."""

    def __init__(self, model: FusedPaliGemma):
        self.model, self.shared, self.rows = model, SharedRows(model.step), []
        self.told: dict[int, list[np.ndarray]] = {}

    def come(self, row: int, new_tokens: int = 12) -> None:
        self.shared.add(prefilled(self.model, row), new_tokens)
        self.rows.append(row)
        self.told[row] = []

    def go(self, row: int) -> None:
        self.shared.keep([place for place, other in enumerate(self.rows) if other != row])
        self.rows.remove(row)

    def step(self) -> None:
        tokens = [TOKENS[row, len(self.told[row])] for row in self.rows]
        for row, logits in zip(self.rows, np.array(self.shared(mx.array(np.array(tokens)))), strict=True):
            self.told[row].append(logits[0])

    def check(self) -> None:
        for row, told in self.told.items():
            assert relative_error(np.array(told), alone(self.model, row, len(told))) < LIMIT, row


def test_rows_that_come_and_go_get_the_logits_that_they_get_alone(model):
    table = Table(model)
    for coming, going in (([0], []), ([1], []), ([4, 2], []), ([], [0]), ([3], []), ([], [1, 4])):
        for row in coming:
            table.come(row)
        for row in going:
            table.go(row)
        table.step()
    table.check()
    assert {row: len(told) for row, told in table.told.items()} == {0: 3, 1: 4, 4: 3, 2: 4, 3: 2}


def test_columns_that_nobody_needs_any_more_are_cut_off(model):
    table = Table(model)
    for row in (4, 1):
        table.come(row)
    table.step()
    wide = table.shared._columns.filled
    table.go(4)
    assert table.shared._columns.filled == wide - (LENGTHS[4] - LENGTHS[1])
    table.step()
    table.check()


def test_a_table_that_was_left_by_all_can_be_sat_down_at_again(model):
    table = Table(model)
    table.come(1)
    table.step()
    table.go(1)
    assert len(table.shared) == 0
    table.come(2)
    table.step()
    table.check()


def test_the_step_sees_numbers_of_rows_that_are_powers_of_two(model):
    table = Table(model)
    sizes = []
    for row in range(5):
        table.come(row)
        sizes.append(len(table.shared._columns.padding))
    assert sizes == [1, 2, 4, 4, 8]
    for _ in range(3):
        table.step()
    table.check()
    for row in (0, 1, 2):
        table.go(row)
    assert len(table.shared._columns.padding) == 2
    table.step()
    table.check()


def test_room_is_made_for_the_row_that_may_write_the_most(model):
    table = Table(model)
    table.come(0, 3)
    table.come(1, 300)
    filled = table.shared._columns.filled
    assert table.shared._columns.keys[0].shape[2] == capacity_for(filled + 300)
    table.go(1)
    assert table.shared._columns.keys[0].shape[2] == capacity_for(table.shared._columns.filled + 3)
