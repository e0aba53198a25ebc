"""The door to the two backends."""

import sys

import pytest

from mlx_paligemma.backends import NAMES, open_backend
from mlx_paligemma.common.errors import BackendError, OptionError


@pytest.mark.parametrize("name", NAMES)
def test_both_backends_open_and_know_their_name(name):
    backend = open_backend(name)
    assert backend.name == name
    assert backend.load.__module__.split(".")[0] == {"mlx": "mlx_paligemma", "torch": "torch_ref"}[name]


def test_an_unknown_backend_names_the_known_ones():
    with pytest.raises(OptionError, match="mlx or torch"):
        open_backend("jax")


@pytest.mark.parametrize(("name", "package", "hint"), [("torch", "torch", r"mlx-paligemma\[torch\]"), ("mlx", "mlx.core", "mlx")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, name, package, hint):
    monkeypatch.setitem(sys.modules, package, None)
    for module in [m for m in sys.modules if m.startswith(("torch_ref", "mlx_paligemma.weights", "mlx_paligemma.model"))]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(BackendError, match=hint):
        open_backend(name)
