"""What the page's fields say about a model."""

import pytest

from mlx_paligemma.common.errors import OptionError
from mlx_paligemma.ui.model_spec import AS_STORED, DEMO, ModelSpec


def test_empty_fields_leave_the_choice():
    for name in (None, "", "  ", DEMO):
        assert ModelSpec.of(name, "torch", AS_STORED, " ") == ModelSpec(None, "torch")
    assert ModelSpec.of(" org/name ", "mlx", "float32", " v1 ") == ModelSpec("org/name", "mlx", "float32", "v1")
    assert ModelSpec.of("org/name", "mlx", None) == ModelSpec("org/name")


def test_an_unknown_backend_names_the_known_ones():
    with pytest.raises(OptionError, match="'jax' is unknown; choose mlx or torch"):
        ModelSpec.of(None, "jax", None)


def test_the_short_name_of_a_folder_has_no_path(tmp_path, monkeypatch):
    (tmp_path / "my model").mkdir()
    assert ModelSpec(str(tmp_path / "my model")).short_name == "my model"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ModelSpec("~/my model").short_name == "my model"
    monkeypatch.chdir(tmp_path / "my model")
    assert ModelSpec(".").short_name == "my model"
    assert ModelSpec("org/name").short_name == "org/name"
    assert ModelSpec().short_name == DEMO


@pytest.mark.parametrize("name", ["a" * 5000, "~nobody-of-this-name/x", "a\0b"])
def test_a_name_that_no_disk_can_hold_is_its_own_short_name(name):
    assert ModelSpec(name).short_name == name
