"""The tokenizer files that we write give transformers and tokenizers the ids of the SentencePiece model."""

import json
import shutil
from functools import cache

import pytest
from checkpoints import IMAGE_TOKEN, PIECES, vocabulary
from PIL import Image
from sentencepiece import sentencepiece_model_pb2 as pb
from vocabularies import NAMES, model_of, sentencepiece, texts

from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.hub import bundled_checkpoint
from mlx_paligemma.common.tokenizer import PaliGemmaTokenizer
from mlx_paligemma.common.tokenizer_files import tokenizer_files

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install -e '.[dev]'")


@cache
def files_of(name):
    return tokenizer_files(model_of(name), sentencepiece(model_of(name)).get_piece_size())


@pytest.fixture(scope="module", params=NAMES)
def folder(request, tmp_path_factory):
    """A folder with the files of one vocabulary, save for tokenizer.model, so that nobody can read that instead."""
    folder = tmp_path_factory.mktemp(request.param)
    for name, content in files_of(request.param).items():
        if name != "tokenizer.model":
            (folder / name).write_bytes(content)
    return folder, model_of(request.param)


def test_tokenizers_gives_the_ids_of_the_model_and_the_text_of_the_ids(folder):
    path, model = folder
    theirs, ours, inputs = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json")), sentencepiece(model), texts(model, 3000)
    ids = ours.encode(inputs)
    assert [encoding.ids for encoding in theirs.encode_batch(inputs)] == ids
    assert theirs.decode_batch(ids) == ours.decode(ids)


def test_transformers_gives_the_ids_of_the_model(folder):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[dev]'")
    path, model = folder
    theirs, ours, inputs = transformers.AutoTokenizer.from_pretrained(path), sentencepiece(model), texts(model, 1000)
    assert type(theirs).__name__ == "GemmaTokenizer"
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.bos_token_id, theirs.unk_token_id) == (0, 1, 2, 3)
    assert (theirs.image_token_id, len(theirs)) == (ours.get_piece_size(), ours.get_piece_size() + 1)
    assert theirs(inputs)["input_ids"] == ours.encode(inputs)


def test_the_processor_of_transformers_writes_the_prompt_as_ours_does(folder):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[dev]'")
    path, model = folder
    shutil.copy(bundled_checkpoint() / "preprocessor_config.json", path)
    theirs, ours = transformers.PaliGemmaProcessor.from_pretrained(path), PaliGemmaTokenizer(model)
    for prompt in ("caption en", "detect cat ; dog", "answer en <loc0012> ?", "segment " + " " * 40 + "é"):
        inputs = theirs(images=Image.new("RGB", (8, 8)), text=f"<image>{prompt}", return_tensors="np")
        assert inputs["input_ids"][0].tolist() == [ours.size] * theirs.image_seq_length + ours.encode_prefix(prompt)
    assert theirs.image_token_id == ours.size
    assert theirs.tokenizer.convert_tokens_to_ids(["<loc0000>", "<seg127>"]) == [ours.first_loc, ours.first_seg + 127]
    assert len(theirs.tokenizer) == ours.size + 1


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_the_same_model_gives_the_same_bytes_and_is_among_them(name):
    assert tokenizer_files(model_of(name), sentencepiece(model_of(name)).get_piece_size()) == files_of(name)
    assert files_of(name)["tokenizer.model"] == model_of(name)


@pytest.mark.parametrize("name", NAMES)
def test_all_files_name_the_image_token_by_its_id(name):
    size, files = sentencepiece(model_of(name)).get_piece_size(), files_of(name)
    assert json.loads(files["added_tokens.json"]) == {"<image>": size}
    assert json.loads(files["tokenizer_config.json"])["added_tokens_decoder"][str(size)]["content"] == "<image>"
    tokens = {token["content"]: token for token in json.loads(files["tokenizer.json"])["added_tokens"]}
    assert tokens["<image>"] == {"id": size, "content": "<image>", "special": True, "normalized": False} | {
        flag: False for flag in ("single_word", "lstrip", "rstrip")
    }
    assert not tokens["<loc0000>"]["special"]


def test_a_vocabulary_without_a_mask_token_gets_none(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[dev]'")
    pieces = tuple(piece for piece in PIECES if piece != "<mask>")
    for name, content in tokenizer_files(vocabulary(pieces), len(pieces)).items():
        (tmp_path / name).write_bytes(content)
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path)) == len(pieces) + 1


def test_a_character_that_only_a_byte_stands_for_is_joined_as_sentencepiece_joins_it():
    model = vocabulary((*PIECES, "\t\t", "\t\t\t"))
    files = tokenizer_files(model, len(PIECES) + 2)
    theirs = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    for text in ("\t", "\t\t", "\t\t\t", "\t\t\t\t", "a\t \t\tb"):
        assert theirs.encode(text).ids == sentencepiece(model).encode(text)
        assert theirs.decode(theirs.encode(text).ids) == text
    assert theirs.encode("\t\t").ids == [len(PIECES)]
    assert theirs.encode("\t").ids == [PIECES.index("<0x09>")]


def test_a_run_of_spaces_begins_with_the_longest_piece_as_in_sentencepiece():
    model = pb.ModelProto.FromString(vocabulary((*PIECES, *("▁" * n for n in range(2, 8)))))
    for piece in model.pieces[len(PIECES) :]:
        piece.type, piece.score = pb.ModelProto.SentencePiece.USER_DEFINED, 0.0
    ours = sentencepiece(model.SerializeToString())
    files = tokenizer_files(model.SerializeToString(), ours.get_piece_size())
    theirs = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    for count in range(30):
        assert theirs.encode(" " * count + "cat").ids == ours.encode(" " * count + "cat")
    assert theirs.encode(" " * 9).tokens == ["▁" * 7, "▁" * 2]


@pytest.mark.parametrize("image", [0, IMAGE_TOKEN - 1, IMAGE_TOKEN + 1])
def test_an_image_token_that_does_not_follow_the_last_piece_is_refused(image):
    with pytest.raises(CheckpointError, match=f"the image token is {image}, and tokenizer.model has {IMAGE_TOKEN} pieces") as error:
        tokenizer_files(vocabulary(), image)
    assert "\n" not in str(error.value)


def test_what_tokenizer_json_cannot_express_is_refused():
    with pytest.raises(CheckpointError, match=r"with the character '.u6f22', which is no piece"):
        tokenizer_files(vocabulary((*PIECES, "漢a")), IMAGE_TOKEN + 1)
    model = pb.ModelProto.FromString(vocabulary())
    for piece in model.pieces:
        piece.score = 0.0
    with pytest.raises(CheckpointError, match="pieces of the same score"):
        tokenizer_files(model.SerializeToString(), IMAGE_TOKEN)


def test_a_damaged_model_is_refused():
    with pytest.raises(CheckpointError, match="is not a SentencePiece model; copy it again"):
        tokenizer_files(vocabulary()[:9000], IMAGE_TOKEN)
