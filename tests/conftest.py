"""For every test: float32 means float32, and what needs a machine, weights or patience that is not there is skipped."""

import os
import signal

import pytest
from hypothesis import settings

os.environ["MLX_ENABLE_TF32"] = "0"  # MLX reads it once, when it is imported


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the acceptance tests with their full counts; takes minutes")
    parser.addoption("--screenshots", metavar="DIR", help="keep pictures of the web page here")


def pytest_configure(config):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C, and so would their children
    settings.register_profile("here", max_examples=1000 if config.getoption("--full") else 200, deadline=None)
    settings.load_profile("here")


@pytest.fixture
def count(request):
    """count(small, full): how many to try."""
    return lambda small, full: full if request.config.getoption("--full") else small


def pytest_collection_modifyitems(config, items):
    wanted = config.getoption("markexpr")
    for item in items:
        for marker, reason in (("slow", _slow), ("metal", _metal), ("cuda", _cuda), ("checkpoint", _checkpoint)):
            if item.get_closest_marker(marker) and (missing := reason(wanted)):
                item.add_marker(pytest.mark.skip(reason=missing))


def _slow(wanted: str) -> str | None:
    return None if "slow" in wanted else "takes minutes; run it with -m slow"


def _metal(wanted: str) -> str | None:
    import mlx.core as mx

    return None if mx.metal.is_available() else "needs an Apple GPU"


def _cuda(wanted: str) -> str | None:
    import torch

    return None if torch.cuda.is_available() else "needs an NVIDIA GPU"


def _checkpoint(wanted: str) -> str | None:
    return None if os.environ.get("PALIGEMMA_CHECKPOINT") else "needs real weights in the folder named by PALIGEMMA_CHECKPOINT"
