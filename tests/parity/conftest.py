"""The tiny models, written once and read by both backends."""

import pytest
import torch

from .tiny_models import Pair, config_json, write_pair


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """These models are so small that a second thread only costs time, and with one the reference repeats itself bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> dict[int, Pair]:
    """PaliGemma 1 (one key-value head) and PaliGemma 2 (two, soft caps, a window of 8)."""
    folder = tmp_path_factory.mktemp("tiny")
    return {generation: write_pair(folder / str(generation), config_json(generation)) for generation in (1, 2)}


@pytest.fixture(params=[1, 2], ids=["paligemma", "paligemma2"])
def generation(request) -> int:
    return request.param


@pytest.fixture
def pair(pairs, generation) -> Pair:
    return pairs[generation]
