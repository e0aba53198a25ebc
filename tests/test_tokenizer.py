"""Text becomes the ids that the released checkpoints were trained on, and ids become text, whole or one at a time."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import BASE, BYTES, IMAGE_TOKEN, PIECES, ROWS, config, tokenizer, vocabulary
from sentencepiece import sentencepiece_model_pb2 as pb

from mlx_paligemma.common.errors import CheckpointError, PromptError
from mlx_paligemma.common.tokenizer import LOC_TOKENS, SEG_TOKENS, PaliGemmaTokenizer, check_vocabulary
from mlx_paligemma.common.tokenizer_files import tokenizer_files

ROOT = Path(__file__).parent.parent
REAL = ROOT / "runs" / "vocabulary" / "tokenizer.model"
FIRST_BYTE = PIECES.index(BYTES[0])
IDS_OF_THE_RELEASED_VOCABULARY = {  # checked against Google's tokenizer
    "caption en\n": [21209, 659, 108],
    "cap en\n": [5549, 659, 108],
    "describe en\n": [15019, 659, 108],
    "ocr\n": [120185, 108],
    "answer en what is it?\n": [13072, 659, 1212, 603, 665, 235336, 108],
    "detect cat ; dog\n": [39208, 4401, 2161, 5929, 108],
    "segment cat\n": [32318, 4401, 108],
    "question en 3\n": [13252, 659, 235248, 235304, 108],
    " caption": [43770],  # not the 21209 of "caption"
    " ; <loc0000>": [2161, 235248, 256000],
    "<loc0000><loc1023>": [256000, 257023],
    "<seg000><seg127>": [257024, 257151],
    "<mask><start_of_turn><end_of_turn>": [4, 106, 107],
    " ": [235248],
    "  ": [139],
    "\t": [226],
    "\x00": [217],  # by its byte, as everything that is no piece
    "\U0010fffd": [217 + 0xF4, 217 + 0x8F, 217 + 0xBF, 217 + 0xBD],
}


@pytest.fixture(scope="module")
def tiny():
    return tokenizer()


@pytest.fixture(scope="module")
def real():
    if not REAL.exists():
        pytest.skip(f"{REAL.relative_to(ROOT)} is not there: run `make vocabulary` first")
    return PaliGemmaTokenizer.from_folder(REAL.parent)


@pytest.mark.parametrize("text", IDS_OF_THE_RELEASED_VOCABULARY)
def test_the_released_vocabulary_gives_the_published_ids(real, text):
    assert real.encode(text) == IDS_OF_THE_RELEASED_VOCABULARY[text]
    assert real.decode(IDS_OF_THE_RELEASED_VOCABULARY[text]) == text


def test_the_released_vocabulary_has_its_special_ids_in_their_places(real):
    assert (real.pad_token_id, real.eos_token_id, real.bos_token_id, real.newline_token_id) == (0, 1, 2, 108)
    assert (real.first_loc, real.first_seg, real.size) == (256000, 257024, 257152)


def test_a_run_of_newlines_is_one_token_of_the_released_vocabulary(real):
    assert [real.encode("\n" * n) for n in range(1, 32)] == [[107 + n] for n in range(1, 32)]


def test_every_byte_of_the_released_vocabulary_lies_at_217_and_its_value(real):
    assert [real.decode([217 + value]) for value in range(128)] == [chr(value) for value in range(128)]


def test_the_image_token_and_the_padding_rows_of_the_released_table_decode_to_nothing(real):
    assert real.decode(range(257152, 257216)) == ""


def test_a_prompt_of_the_released_vocabulary_is_bos_text_newline(real):
    assert real.encode_prefix("caption en") == [2, 21209, 659, 108]
    assert real.encode_prefix("caption en ") == [2, 21209, 659, 235248, 108]
    assert real.encode_prefix("caption en\n") == [2, 21209, 659, 108, 108]  # transformers gives 109 here
    assert real.encode_prefix("") == [2, 108]


@pytest.mark.parametrize("ending", ["", " ", "  ", "\n", "\n\n", "\t", " \n"])
def test_the_newline_is_a_token_of_its_own_whatever_the_prompt_ends_in(tiny, ending):
    ids = tiny.encode_prefix("caption en" + ending)
    assert ids == [tiny.bos_token_id, *tiny.encode("caption en" + ending), tiny.newline_token_id]
    assert tiny.decode(ids) == f"caption en{ending}\n"


def test_a_suffix_ends_in_eos_and_has_no_bos(tiny):
    assert tiny.encode_suffix("cat") == [*tiny.encode("cat"), tiny.eos_token_id]


@pytest.mark.parametrize("text", ["<bos>", "<eos>", "<pad>", "<unk>", "<image>", "caption <eos> en", "<image><bos>caption en"])
@pytest.mark.parametrize("which", ["tiny", "real"])
def test_the_text_of_a_special_token_stays_text(request, which, text):
    tokens = request.getfixturevalue(which)
    ids = tokens.encode(text)
    assert not {tokens.pad_token_id, tokens.eos_token_id, tokens.bos_token_id, 3} & set(ids)
    assert max(ids) < tokens.first_loc
    assert tokens.decode(ids) == text


def test_the_text_of_a_location_gives_its_token(tiny):
    assert tiny.encode("<loc0012>") == [tiny.first_loc + 12]
    assert tiny.encode("a<seg127>a")[1:-1] == [tiny.first_seg + 127]
    assert tiny.encode("".join(LOC_TOKENS + SEG_TOKENS)) == list(range(tiny.first_loc, tiny.first_seg + 128))
    assert tiny.first_loc + 12 not in tiny.encode("<loc12>")
    assert tiny.first_loc + 12 not in tiny.encode("<LOC0012>")


def test_any_text_comes_back_from_its_ids(tiny):
    rng = random.Random(0)
    alphabet = "abc dets\n\t;?<>0189éüß漢😀\u0301\u200d\x00\ufffd" + LOC_TOKENS[7]
    for _ in range(500):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(30)))
        assert tiny.decode(tiny.encode(text)) == text


def test_ids_that_stand_for_no_text_decode_to_nothing(tiny):
    nothing = [-1, -5, tiny.pad_token_id, tiny.eos_token_id, tiny.bos_token_id, 3, tiny.size, IMAGE_TOKEN, IMAGE_TOKEN + 40, 10**9]
    assert tiny.decode(nothing) == ""
    assert tiny.decode([*nothing, *tiny.encode("a cat"), *nothing]) == "a cat"


def test_text_that_is_no_unicode_is_refused_in_one_line(tiny):
    with pytest.raises(PromptError, match="UTF-8") as error:  # what Python makes of the argument b"caf\xe9"
        tiny.encode("caf\udce9\n")
    assert "\n" not in str(error.value)
    str(error.value).encode()


def test_streamed_text_is_the_decoded_text_whatever_the_ids():
    tokens, rng = tokenizer(), random.Random(1)
    leads, trails = range(FIRST_BYTE + 0xC0, FIRST_BYTE + 0xF8), range(FIRST_BYTE + 0x80, FIRST_BYTE + 0xC0)
    for _ in range(3000):
        pools = [leads, trails, trails, trails, range(FIRST_BYTE, FIRST_BYTE + 256), range(-2, IMAGE_TOKEN + 9)]
        ids = [rng.choice(rng.choice(pools)) for _ in range(rng.randrange(12))]
        stream = tokens.stream()
        assert "".join([*map(stream.add, ids), stream.finish()]) == tokens.decode(ids)


def test_streamed_text_never_holds_half_a_character_nor_keeps_back_a_whole_one(tiny):
    rng = random.Random(2)
    for _ in range(300):
        text = "".join(rng.choice(["a", "é", "漢", "😀", "€", "\ufffd", "ca", "\n", "𝔢"]) for _ in range(8))
        stream, shown, fed = tiny.stream(), "", b""
        for byte in text.encode():
            fed += bytes([byte])
            shown += stream.add(FIRST_BYTE + byte)
            assert shown == fed.decode(errors="ignore")
        assert shown == text
        assert stream.finish() == ""


def test_an_unfinished_character_is_shown_as_a_replacement_at_the_end(tiny):
    stream = tiny.stream()
    assert [stream.add(FIRST_BYTE + byte) for byte in "😀".encode()[:3]] == ["", "", ""]
    assert stream.finish() == "\ufffd" * 3


def test_streaming_decodes_every_id_only_once(monkeypatch):
    tokens = tokenizer()
    ids = tokens.encode("a long answer with 漢字 and é " * 20)
    decoded = []
    decode = tokens.decode
    monkeypatch.setattr(tokens, "decode", lambda some: decoded.extend(some) or decode(some))
    stream = tokens.stream()
    text = "".join(map(stream.add, ids))
    assert decode(ids) == text
    assert decoded == ids


def retyped(piece, kind):
    """The tiny vocabulary with one piece of another kind."""
    model = pb.ModelProto.FromString(vocabulary())
    model.pieces[PIECES.index(piece)].type = kind
    return model.SerializeToString()


KINDS = pb.ModelProto.SentencePiece
BROKEN = {
    "no bytes at all": (b"", "not a SentencePiece model"),
    "text": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not a SentencePiece model"),
    "a file cut short": (vocabulary()[:9000], "not a SentencePiece model"),
    "a plain Gemma vocabulary": (vocabulary(BASE), "<loc0000>..<loc1023>; a plain Gemma"),
    "loc tokens only": (vocabulary((*BASE, *LOC_TOKENS)), "<seg000>..<seg127>; a plain Gemma"),
    "loc tokens out of order": (vocabulary((*BASE, *LOC_TOKENS[::-1], *SEG_TOKENS)), "<loc0000>..<loc1023>"),
    "seg tokens with a gap": (vocabulary((*BASE, *LOC_TOKENS, *SEG_TOKENS[:9], "gap", *SEG_TOKENS[9:])), "<seg000>..<seg127>"),
    "loc tokens that text cannot reach": (retyped("<loc0500>", KINDS.NORMAL), "<loc0000>..<loc1023>"),
    "no bos": (retyped("<bos>", KINDS.NORMAL), "no control piece <bos>"),
    "no newline": (vocabulary(tuple(piece for piece in PIECES if piece.strip())), "newline"),
    "a space put in front": (vocabulary(add_dummy_prefix=True), "PaliGemma vocabulary"),
    "spaces removed": (vocabulary(remove_extra_whitespaces=True), "PaliGemma vocabulary"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_vocabulary_that_is_not_paligemmas_is_refused_in_one_line_with_its_name(tmp_path, case, capfd):
    content, words = BROKEN[case]
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        PaliGemmaTokenizer.from_folder(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "tokenizer.model"))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")  # sentencepiece likes to log


def test_a_folder_without_a_vocabulary_is_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"has no tokenizer\.model; copy it there from the checkpoint, or its tokenizer\.json, or"
    ) as error:
        PaliGemmaTokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_model_comes_first_then_the_json_then_the_name_of_big_vision(tmp_path):
    forms = tokenizer_files(vocabulary(), IMAGE_TOKEN)
    contents = {
        "paligemma_tokenizer.model": forms["tokenizer.model"],
        "tokenizer.json": forms["tokenizer.json"],
        "tokenizer.model": forms["tokenizer.model"],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        tokens = PaliGemmaTokenizer.from_folder(tmp_path)
        assert tokens.name == str(tmp_path / name)
        assert tokens.encode_prefix("caption en <loc0012>é漢") == tokenizer().encode_prefix("caption en <loc0012>é漢")
    assert tokens.model == vocabulary()


def test_a_broken_model_is_not_passed_over_for_a_json_that_is_whole(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_files(vocabulary(), IMAGE_TOKEN)["tokenizer.json"])
    (tmp_path / "tokenizer.model").write_bytes(vocabulary()[:9000])
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is not a SentencePiece model"):
        PaliGemmaTokenizer.from_folder(tmp_path)


def test_a_plain_gemma_vocabulary_is_refused_with_the_file_to_take(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(vocabulary(BASE))
    with pytest.raises(
        CheckpointError, match=r"will not do: copy tokenizer\.model from a PaliGemma checkpoint such as google/pali"
    ):
        PaliGemmaTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("image", [IMAGE_TOKEN, IMAGE_TOKEN + 1, ROWS - 1])
def test_a_config_whose_image_token_lies_after_the_pieces_fits_the_vocabulary(tiny, image):
    check_vocabulary(tiny, config(image_token_index=image))


CONTRADICTIONS = {
    "a piece": ({"image_token_index": IMAGE_TOKEN - 1}, f"image_token_index {IMAGE_TOKEN - 1} is one of its {IMAGE_TOKEN} pieces"),
    "the first location": ({"image_token_index": len(BASE)}, f"image_token_index {len(BASE)} is its <loc0000>; in a plain Gemma"),
    "no row": ({"image_token_index": ROWS}, f"image_token_index {ROWS} is not one of the {ROWS} rows"),
    "fewer rows": (
        {"text": {"vocab_size": IMAGE_TOKEN - 1}},
        f"vocab_size {IMAGE_TOKEN - 1} is less than its {IMAGE_TOKEN} pieces",
    ),
    "another end": ({"eos_token_id": 107}, "eos_token_id 107 is not its <eos>, 1"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_config_that_contradicts_the_vocabulary_is_refused_with_both_names(case):
    changes, words = CONTRADICTIONS[case]
    with pytest.raises(CheckpointError) as error:
        check_vocabulary(PaliGemmaTokenizer(vocabulary(), "some/tokenizer.json"), config(**changes))
    assert str(error.value).startswith(f"config.json and some/tokenizer.json do not belong together: {words}")
    assert "\n" not in str(error.value)


def test_a_folder_in_the_place_of_the_vocabulary_is_an_error(tmp_path):
    (tmp_path / "tokenizer.model").mkdir()
    with pytest.raises(CheckpointError, match="is not a file"):
        PaliGemmaTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("npm", [None, "#!/bin/sh\necho 'npm error network is down' >&2\nexit 1\n"], ids=["without npm", "offline"])
def test_the_vocabulary_script_fails_in_one_line_and_writes_nothing(tmp_path, npm):
    if npm is not None:
        (tmp_path / "npm").write_text(npm)
        (tmp_path / "npm").chmod(0o755)
    out = tmp_path / "out" / "tokenizer.model"
    environment = os.environ | {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "scripts" / "build_vocabulary.py", out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: npm ")
    assert done.stderr.count("\n") == 1
    assert not out.exists()
