"""Pictures and prompts become the arrays that transformers makes of them; what cannot be used is refused in one line."""

import numpy as np
import pytest
from checkpoints import IMAGE_TOKEN, NEWLINES, PIECES, SPECIAL, config, tokenizer
from PIL import Image

from mlx_paligemma.common.errors import CheckpointError, ImageError, PromptError
from mlx_paligemma.common.image import pixel_values
from mlx_paligemma.common.processor import IGNORED, PaliGemmaProcessor, picture_rows

PATCHES = 4  # image tokens of a picture of the tiny model
RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (20, 50), "blue")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (33, 45, 3), dtype=np.uint8))
PROMPTS = ["caption en", "detect cat ; dog", "answer en is it a star?"]
SUFFIXES = ["a cat", "<loc0001><loc0002><loc0003><loc0004> cat", ""]


@pytest.fixture(scope="module")
def processor():
    return PaliGemmaProcessor(config(), tokenizer())


@pytest.fixture(scope="module")
def theirs():
    """transformers' processor with the same vocabulary, as a fast tokenizer."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    ids = {piece: index for index, piece in enumerate(PIECES)}
    splits = [(piece[:i], piece[i:]) for piece in PIECES for i in range(1, len(piece))]
    merges = [split for split in splits if set(split) <= ids.keys() - {*SPECIAL, *NEWLINES}]
    fast = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    fast.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    fast.add_tokens([tokenizers.AddedToken(piece, normalized=False) for piece in NEWLINES])
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, padding_side="left", **special)
    shape, half = {"height": 28, "width": 28}, [0.5, 0.5, 0.5]
    images = transformers.SiglipImageProcessorPil(do_convert_rgb=True, size=shape, image_mean=half, image_std=half, resample=3)
    images.image_seq_length = PATCHES
    return transformers.PaliGemmaProcessor(images, wrapped)


def assert_same(ours, theirs):
    """All that both know of a batch is equal. transformers puts the pictures of all rows one after another."""
    assert np.array_equal(ours.input_ids, theirs["input_ids"])
    assert np.array_equal(ours.attention_mask, theirs["attention_mask"])
    assert np.array_equal(ours.token_type_ids, theirs["token_type_ids"])
    assert {array.dtype for array in (ours.input_ids, ours.attention_mask, ours.token_type_ids)} == {np.dtype(np.int32)}
    counts = (ours.input_ids == IMAGE_TOKEN).sum(1) // PATCHES
    pixels = np.concatenate([row[:count] for row, count in zip(ours.pixel_values, counts, strict=True)])
    assert np.array_equal(pixels.transpose(0, 3, 1, 2), theirs["pixel_values"])


def test_the_vocabulary_of_transformers_is_ours(theirs):
    assert theirs.image_token_id == IMAGE_TOKEN
    for text in (*PROMPTS, *SUFFIXES, "Ünlike ▁ pieces 漢字 <seg127>x", "\n\nx\n"):
        assert theirs.tokenizer.encode(text, add_special_tokens=False) == tokenizer().encode(text)


@pytest.mark.parametrize("rows", [[0], [1, 1], [0, 1, 2], [2, 0, 1, 2]], ids=str)
def test_a_batch_of_prompts_is_that_of_transformers(processor, theirs, rows):
    images, prompts = [[RED, BLUE, NOISE][row] for row in rows], [PROMPTS[row] for row in rows]
    expected = theirs(images=[[image] for image in images], text=prompts, padding="longest", return_tensors="np")
    ours = processor(images, prompts)
    assert_same(ours, expected)
    assert ours.prefix_length is None
    assert ours.labels is None


@pytest.mark.parametrize("rows", [[0], [1, 1], [0, 1, 2]], ids=str)
def test_a_training_batch_is_that_of_transformers_labels_included(processor, theirs, rows):
    images = [[RED, BLUE, NOISE][row] for row in rows]
    prompts, suffixes = [PROMPTS[row] for row in rows], [SUFFIXES[row] for row in rows]
    expected = theirs(images=[[i] for i in images], text=prompts, suffix=suffixes, padding="longest", return_tensors="np")
    ours = processor(images, prompts, suffixes)
    assert_same(ours, expected)
    assert np.array_equal(ours.labels, expected["labels"])


def test_rows_of_several_pictures_are_those_of_transformers(processor, theirs):
    images = [[RED, BLUE], [NOISE], [BLUE, NOISE, RED]]
    assert_same(processor(images, PROMPTS), theirs(images=images, text=PROMPTS, padding="longest", return_tensors="np"))


def test_a_row_is_image_tokens_bos_text_newline(processor):
    inputs = processor([RED], ["caption en"])
    tokens = processor.tokenizer
    assert inputs.input_ids.tolist() == [[IMAGE_TOKEN] * PATCHES + tokens.encode_prefix("caption en")]
    assert inputs.input_ids[0, -1] == tokens.newline_token_id
    assert inputs.padding is None
    assert inputs.pixel_values.dtype == np.float32
    assert np.array_equal(inputs.pixel_values[0, 0], pixel_values(RED, 28))


def test_rows_of_different_length_end_in_the_same_column(processor):
    inputs = processor([RED, BLUE, RED], PROMPTS, SUFFIXES)
    alone = [processor([RED], [prompt], [suffix]) for prompt, suffix in zip(PROMPTS, SUFFIXES, strict=True)]
    lengths = [row.input_ids.shape[1] for row in alone]
    assert inputs.padding.tolist() == [max(lengths) - length for length in lengths]
    assert len(set(lengths)) == 3
    for row, length, single in zip(range(3), lengths, alone, strict=True):
        for name in ("input_ids", "labels", "token_type_ids", "attention_mask"):
            assert np.array_equal(getattr(inputs, name)[row, -length:], getattr(single, name)[0])
        assert (inputs.input_ids[row, :-length] == 0).all()
        assert (inputs.labels[row, :-length] == IGNORED).all()
        assert inputs.prefix_length[row] == single.prefix_length[0]


def test_only_the_suffix_and_its_eos_are_labels(processor):
    inputs = processor([RED], ["caption en"], ["a cat"])
    suffix = processor.tokenizer.encode_suffix("a cat")
    assert inputs.labels[0, -len(suffix) :].tolist() == suffix
    assert (inputs.labels[0, : -len(suffix)] == IGNORED).all()
    assert inputs.prefix_length.tolist() == [inputs.input_ids.shape[1] - len(suffix)]


def test_rows_with_fewer_pictures_are_filled_with_grey_that_no_token_reads(processor):
    inputs = processor([[RED, BLUE], NOISE], ["ocr", "ocr"])
    assert inputs.pixel_values.shape == (2, 2, 28, 28, 3)
    assert (inputs.pixel_values[1, 1] == 0).all()
    assert (inputs.input_ids == IMAGE_TOKEN).sum(1).tolist() == [2 * PATCHES, PATCHES]
    assert inputs.padding.tolist() == [0, PATCHES]


def test_white_space_around_a_prompt_does_not_count(processor):
    for prompt in ("caption en ", " caption en", "caption en\n", "\tcaption en\n\n"):
        assert np.array_equal(processor([RED], [prompt]).input_ids, processor([RED], ["caption en"]).input_ids)


def test_a_newline_after_the_prompt_is_no_part_of_it_although_transformers_would_merge_it(processor, theirs):
    ours = processor([RED], ["caption en\n"])
    merged = theirs(images=[[RED]], text=["caption en\n"], return_tensors="np")["input_ids"]
    assert ours.input_ids[0, -1] == processor.tokenizer.newline_token_id == PIECES.index("\n")
    assert merged[0, -1] == PIECES.index("\n\n")


def test_a_prompt_that_writes_special_tokens_gets_no_more_of_them(processor):
    ids = processor([RED], ["<image><bos>caption en<eos>"]).input_ids[0].tolist()
    assert ids.count(IMAGE_TOKEN) == PATCHES
    assert ids.count(processor.tokenizer.bos_token_id) == 1
    assert processor.tokenizer.eos_token_id not in ids


@pytest.mark.parametrize("prompt", ["", " ", "\n\t "])
def test_an_empty_prompt_is_refused(processor, prompt):
    with pytest.raises(PromptError, match="the prompt is empty; try"):
        processor([RED], [prompt])


MISMATCHES = [
    ([RED, BLUE], ["ocr"], None, "2 pictures do not match 1 prompts"),
    ([RED], ["ocr", "ocr"], None, "1 pictures do not match 2 prompts"),
    ([], [], None, "0 pictures do not match 0 prompts"),
    ([RED], ["ocr"], ["a", "b"], "2 suffixes do not match 1 prompts"),
    ([RED], ["ocr"], [], "0 suffixes do not match 1 prompts"),
    ([[]], ["ocr"], None, "a prompt has no picture"),
    ([RED, ()], ["ocr", "ocr"], None, "a prompt has no picture"),
    ([RED], "ocr", None, "prompts must be a list of texts"),
    ([RED], [None], None, "prompts must be a list of texts"),
    ([RED], ["ocr"], "x", "suffixes must be a list of texts"),
    (RED, ["ocr"], None, "images must be a list"),
    ("cat.jpg", ["ocr"], None, "images must be a list"),
]


@pytest.mark.parametrize(("images", "prompts", "suffixes", "words"), MISMATCHES, ids=range(len(MISMATCHES)))
def test_lists_that_do_not_match_are_refused(processor, images, prompts, suffixes, words):
    with pytest.raises(PromptError, match=words) as error:
        processor(images, prompts, suffixes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("image", ["nothing.jpg", 5, None, np.zeros((2, 2), dtype=complex)])
def test_a_picture_that_cannot_be_read_is_an_image_error(processor, image):
    with pytest.raises(ImageError):
        processor([RED, image], ["ocr", "ocr"])


def test_a_prompt_may_fill_the_context_but_for_one_token():
    short = PaliGemmaProcessor(config(text={"max_position_embeddings": 12}), tokenizer())
    assert short([RED], ["aaaaa"]).input_ids.shape[1] == PATCHES + 7
    with pytest.raises(PromptError, match="the prompt and its pictures make 12 tokens; the model's context holds 12: shorten it"):
        short([RED], ["aaaaaa"])
    with pytest.raises(PromptError, match="make 15 tokens"):
        short([[RED, RED]], ["aaaaa"])


def test_a_prefix_and_its_suffix_may_fill_the_whole_context():
    short = PaliGemmaProcessor(config(text={"max_position_embeddings": 12}), tokenizer())
    assert short([RED], ["aaa"], ["ss"]).input_ids.shape[1] == 12
    with pytest.raises(PromptError, match="its suffix make 13 tokens; the model's context holds 12"):
        short([RED], ["aaa"], ["sss"])


WRONG_IDS = {
    "image_token_index": {"image_token_index": IMAGE_TOKEN - 1},
    "vocab_size": {"text": {"vocab_size": IMAGE_TOKEN - 1}},
    "eos_token_id": {"eos_token_id": 107},
}


@pytest.mark.parametrize("name", WRONG_IDS)
def test_a_config_and_a_vocabulary_of_different_models_are_refused(name):
    with pytest.raises(CheckpointError, match=f"do not belong together: {name}") as error:
        PaliGemmaProcessor(config(**WRONG_IDS[name]), tokenizer())
    assert "\n" not in str(error.value)


def test_text_inputs_are_the_text_side_of_a_training_batch(processor):
    whole = processor([RED, RED, RED], PROMPTS, SUFFIXES)
    text = processor.text_inputs(list(zip(PROMPTS, SUFFIXES, strict=True)))
    for name in ("input_ids", "padding", "prefix_length", "labels"):
        assert np.array_equal(getattr(text, name), getattr(whole, name))
    assert text.pixel_values.shape == (3, 0, 28, 28, 3)


def test_a_row_of_pictures_may_be_a_picture_a_list_or_a_tuple():
    assert picture_rows([RED, [BLUE], (RED, BLUE), "a.png"]) == [[RED], [BLUE], [RED, BLUE], ["a.png"]]
