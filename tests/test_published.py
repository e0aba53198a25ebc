"""The sizes are those of the released checkpoints, and need no backend."""

import subprocess
import sys
from math import prod

import pytest

from mlx_paligemma.common.errors import OptionError
from mlx_paligemma.common.tensors import expected_shapes
from mlx_paligemma.published import Size, published_config

# Parameters with 257216 embedding rows at 224 pixels; a higher resolution has more position rows and nothing else.
PARAMETERS = {"pg1-3b": 2_923_466_480, "pg2-3b": 3_032_242_416, "pg2-10b": 9_662_638_832, "pg2-28b": 27_650_487_024}
TENSORS = {"pg1-3b": 603, "pg2-3b": 727, "pg2-10b": 903, "pg2-28b": 947}


def parameters(size: str, resolution: int) -> int:
    return sum(map(prod, expected_shapes(published_config(size, resolution)).values()))


@pytest.mark.parametrize("size", PARAMETERS)
def test_a_size_has_as_many_parameters_and_tensors_as_its_released_files(size):
    assert parameters(size, 224) == PARAMETERS[size]
    assert len(expected_shapes(published_config(size, 224))) == TENSORS[size]


@pytest.mark.parametrize(("resolution", "patches"), [(224, 256), (448, 1024), (896, 4096)])
def test_a_resolution_changes_the_number_of_image_tokens_alone(resolution, patches):
    config = published_config("pg2-3b", resolution)
    assert config.vision.num_patches == patches
    assert parameters("pg2-3b", resolution) - PARAMETERS["pg2-3b"] == (patches - 256) * 1152
    assert config.text == published_config("pg2-3b", 224).text


@pytest.mark.parametrize(
    ("size", "head_dim", "scalar", "caps", "window"),
    [
        ("pg1-3b", 256, 256, (None, None), None),
        ("pg2-3b", 256, 256, (50, 30), 4096),
        ("pg2-10b", 256, 256, (50, 30), 4096),
        ("pg2-28b", 128, 144, (50, 30), 4096),
    ],
)
def test_heads_query_scale_caps_and_window_are_those_of_the_family(size, head_dim, scalar, caps, window):
    text = published_config(size, 224).text
    assert (text.head_dim, text.query_pre_attn_scalar, text.sliding_window) == (head_dim, scalar, window)
    assert (text.attn_logit_softcapping, text.final_logit_softcapping) == caps


def test_the_tiny_size_is_a_paligemma_2_of_a_few_megabytes():
    config = published_config("tiny", 56)
    assert config.text.model_type == "gemma2"
    assert config.vision.num_patches == 16
    assert parameters("tiny", 56) < 2e6
    assert config.image_token_index < config.text.vocab_size


@pytest.mark.parametrize(("size", "resolution"), [("pg3-3b", 224), ("pg2-3b", 0), ("pg2-3b", 225), ("pg2-3b", -14)])
def test_another_size_or_resolution_is_refused_in_one_line_that_names_the_choices(size, resolution):
    with pytest.raises(OptionError, match=r"pg1-3b.*tiny|224, 448 or 896") as caught:
        published_config(size, resolution)
    assert "\n" not in str(caught.value)


def test_every_size_has_a_config():
    assert {published_config(size).text.hidden_size for size in Size} == {2048, 2304, 3584, 4608, 128}


def test_sizes_and_rooflines_load_neither_backend():
    code = "import sys, mlx_paligemma.roofline, mlx_paligemma.published; print({'mlx', 'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
