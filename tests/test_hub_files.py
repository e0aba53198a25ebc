"""Of a repository's files, those are chosen by name that make its checkpoint, in one form."""

import pytest

from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.hub_files import is_npz, wanted_files

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
ASIDE = [".gitattributes", "README.md", "model.gguf", "tf_model.h5", "flax_model.msgpack", "pytorch_model.bin", "optimizer.pt"]
CHOICES = {
    "safetensors": (["config.json", "tokenizer.json", "tokenizer.model", *SHARDS], ASIDE),
    "safetensors and npz": (["config.json", "model.safetensors", "vae-oid.npz"], ["pt_224.npz", *ASIDE]),
    "npz": (["paligemma-3b-pt-224.npz", "paligemma_tokenizer.model"], ASIDE),
    "npz in several dtypes": (["pt_224.npz"], ["pt_224.bf16.npz", "pt_224.f16.npz"]),
    "npz in a short dtype": (["paligemma2-3b-pt-224.b16.npz"], ASIDE),
    "npz in pieces": (["pt-896.b16.npz.part00", "pt-896.b16.npz.part01", "vae-oid.npz"], ["pt-896.f16.npz.part00"]),
    "subfolders": (["model.safetensors"], ["original/model.safetensors", "old/config.json", "onnx/a.npz"]),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_files_that_are_needed_are_chosen_and_no_others(case):
    wanted, aside = CHOICES[case]
    assert wanted_files("org/name", [*aside, *wanted]) == sorted(wanted)


REFUSED = {
    "nothing": (["README.md"], "has no .safetensors or .npz file; choose another repository or --revision"),
    "the codec alone": (["vae-oid.npz"], "has no .safetensors or .npz file"),
    "pickles": (["config.json", "pytorch_model-00001-of-00002.bin"], "not read, since they can run programs; choose a --revision"),
    "two models": (["pt_224.npz", "pt_448.npz"], r"several checkpoints \(pt_224, pt_448\); run `hf download org/name FILE`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_repository_without_a_checkpoint_is_refused_with_the_way_out(case):
    names, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message) as error:
        wanted_files("org/name", names)
    assert "\n" not in str(error.value)


def test_an_npz_and_its_pieces_are_told_from_the_mask_codec():
    assert all(is_npz(name) for name in ("a.npz", "a.bf16.npz", "a.npz.part00", "a.npz.part12"))
    assert not any(is_npz(name) for name in ("vae-oid.npz", "a.npy", "a.npz.txt", ".npz", "a.safetensors"))
