"""Limits are at least 1."""

from dataclasses import fields

import pytest

from mlx_paligemma.common.errors import OptionError
from mlx_paligemma.ui.settings import Settings

LIMITS = [field.name for field in fields(Settings) if field.type == "int"]


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_below_one_is_refused(name):
    assert getattr(Settings(**{name: 1}), name) == 1
    with pytest.raises(OptionError, match=f"{name} is 0; it must be at least 1"):
        Settings(**{name: 0})
