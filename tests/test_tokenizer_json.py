"""A folder that has only tokenizer.json gives the ids that it gives with tokenizer.model, or is refused in one line."""

import json
import os
import random
import sys
from copy import deepcopy
from functools import cache

import pytest
from checkpoints import IMAGE_TOKEN, PIECES, vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from vocabularies import NAMES, model_of, sentencepiece, texts

from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.tokenizer import LOC_TOKENS, SEG_TOKENS, PaliGemmaTokenizer
from mlx_paligemma.common.tokenizer_files import tokenizer_files
from mlx_paligemma.common.tokenizer_json import LARGEST_FILE, read_tokenizer_json, sentencepiece_from_json

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install -e '.[dev]'")
PLACES = {*LOC_TOKENS, *SEG_TOKENS, "<image>"}
BASE_SIZE = len(PIECES) - len(LOC_TOKENS) - len(SEG_TOKENS)


@cache
def written(name):
    """Our own tokenizer.json of a vocabulary, as text."""
    return tokenizer_files(model_of(name), sentencepiece(model_of(name)).get_piece_size())["tokenizer.json"].decode()


@cache
def rebuilt(name):
    return SentencePieceProcessor(model_proto=sentencepiece_from_json(json.loads(written(name))))


def tiny():
    """The tokenizer.json of the tiny vocabulary, to be changed."""
    return json.loads(written("tiny"))


def without_places():
    """The same as a plain Gemma's: neither loc and seg tokens nor an image token."""
    data = tiny()
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in PLACES]
    data["model"]["vocab"] = {text: i for text, i in data["model"]["vocab"].items() if text not in PLACES}
    return data


def token(text, index):
    return {
        "id": index,
        "content": text,
        "special": False,
        "normalized": False,
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
    }


def save(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", NAMES)
def test_the_rebuilt_model_gives_the_ids_of_the_original_and_the_text_of_the_ids(name):
    inputs, original = texts(model_of(name), 5000), sentencepiece(model_of(name))
    ids = original.encode(inputs)
    assert rebuilt(name).encode(inputs) == ids
    assert rebuilt(name).decode(ids) == original.decode(ids)


@pytest.mark.parametrize("name", NAMES)
def test_the_rebuilt_model_has_the_pieces_of_the_original_in_their_places_and_kinds(name):
    original = sentencepiece(model_of(name))
    assert rebuilt(name).get_piece_size() == original.get_piece_size()
    for index in range(original.get_piece_size()):
        for of in ("id_to_piece", "is_control", "is_unknown", "is_byte", "is_unused"):
            assert getattr(rebuilt(name), of)(index) == getattr(original, of)(index)


@pytest.mark.parametrize("name", ["tiny", "demo"])
@pytest.mark.parametrize("form", ["loc and seg in the vocabulary", "loc and seg added by the processor"])
def test_a_folder_that_transformers_saved_gives_the_ids_of_the_original(tmp_path, name, form):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[dev]'")
    folder, model = tmp_path / "sentencepiece", model_of(name)
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model)
    theirs = transformers.GemmaTokenizer.from_pretrained(folder)
    if form == "loc and seg added by the processor":
        theirs.add_tokens([*LOC_TOKENS, *SEG_TOKENS])
    theirs.add_special_tokens({"additional_special_tokens": ["<image>"]})
    theirs.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "tokenizer.model").exists()
    ours, inputs = PaliGemmaTokenizer.from_folder(tmp_path / "saved"), texts(model, 1000)
    assert list(map(ours.encode, inputs)) == sentencepiece(model).encode(inputs)


def test_gemmas_own_forms_are_read_alike():
    """Merges as pairs, spaces replaced in a sequence, a pre-tokenizer that finds no space, tokens found in the text as it is."""
    data = tiny()
    data["model"]["merges"] = [merge.split(" ") for merge in data["model"]["merges"]]
    data["normalizer"] = {"type": "Sequence", "normalizers": [data["normalizer"]]}
    data["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    for entry in data["added_tokens"]:
        entry["normalized"] = False
    assert sentencepiece_from_json(data) == sentencepiece_from_json(tiny())


def test_the_tab_may_stand_for_its_byte():
    data = tiny()
    data["model"]["vocab"] = {text.replace("<0x09>", "\t"): i for text, i in data["model"]["vocab"].items()}
    pieces = SentencePieceProcessor(model_proto=sentencepiece_from_json(data))
    assert pieces.is_byte(PIECES.index("<0x09>"))
    assert pieces.encode("a\tb") == sentencepiece(vocabulary()).encode("a\tb")
    assert pieces.decode([PIECES.index("<0x09>")]) == "\t"


def test_loc_and_seg_tokens_may_stand_in_the_added_tokens_alone(tmp_path):
    data = tiny()
    data["model"]["vocab"] = without_places()["model"]["vocab"]
    save(tmp_path, tokenizer=data)
    assert read_tokenizer_json(tmp_path) == sentencepiece_from_json(tiny())


def test_loc_and_seg_tokens_may_stand_in_the_files_beside(tmp_path):
    ids = {text: BASE_SIZE + i for i, text in enumerate((*LOC_TOKENS, *SEG_TOKENS, "<image>"))}
    decoder = {str(index): {"content": text} for text, index in ids.items()}
    for number, files in enumerate(({"added_tokens": ids}, {"tokenizer_config": {"added_tokens_decoder": decoder}})):
        folder = tmp_path / str(number)
        folder.mkdir()
        save(folder, tokenizer=without_places(), **files)
        assert read_tokenizer_json(folder) == sentencepiece_from_json(tiny())
    save(tmp_path, tokenizer=tiny(), added_tokens=ids, tokenizer_config={"added_tokens_decoder": decoder})
    assert read_tokenizer_json(tmp_path) == sentencepiece_from_json(tiny())


def test_a_folder_without_a_tokenizer_config_decoder_is_read(tmp_path):
    save(tmp_path, tokenizer=tiny(), tokenizer_config={"tokenizer_class": "GemmaTokenizer"})
    assert PaliGemmaTokenizer.from_folder(tmp_path).encode("<loc0000>") == [BASE_SIZE]


def test_the_text_of_a_special_token_stays_text():
    ids = rebuilt("tiny").encode("<bos><eos><image><pad><unk>")
    assert not {0, 1, 2, 3, IMAGE_TOKEN} & set(ids)


def in_vocabulary(**ids):
    return lambda data: data["model"]["vocab"].update({text.replace("_", ""): index for text, index in ids.items()})


def shift(data):
    """What transformers makes of a plain Gemma vocabulary: the image token first, then loc and seg tokens."""
    data["model"]["vocab"] = without_places()["model"]["vocab"]
    plain = [entry for entry in data["added_tokens"] if entry["content"] not in PLACES]
    order = ("<image>", *LOC_TOKENS, *SEG_TOKENS)
    data["added_tokens"] = plain + [token(text, BASE_SIZE + i) for i, text in enumerate(order)]


BROKEN = {
    "no model": (lambda d: d.pop("model"), "holds no BPE vocabulary"),
    "a model that is a list": (lambda d: d.update(model=[]), "holds no BPE vocabulary"),
    "no merges": (lambda d: d["model"].pop("merges"), "holds no BPE vocabulary"),
    "merges as text": (lambda d: d["model"].update(merges="a b"), "holds no BPE vocabulary"),
    "a vocabulary as a list": (lambda d: d["model"].update(vocab=[["a", 0]]), "holds no BPE vocabulary"),
    "Unigram": (lambda d: d["model"].update(type="Unigram"), "has another type"),
    "no byte fallback": (lambda d: d["model"].update(byte_fallback=False), "has another byte_fallback"),
    "dropout": (lambda d: d["model"].update(dropout=0.1), "has another dropout"),
    "whole words first": (lambda d: d["model"].update(ignore_merges=True), "has another ignore_merges"),
    "a suffix": (lambda d: d["model"].update(end_of_word_suffix="</w>"), "has another end_of_word_suffix"),
    "no normalizer": (lambda d: d.update(normalizer=None), "has another normalizer"),
    "a space in front": (lambda d: d.update(normalizer={"type": "Prepend", "prepend": "▁"}), "has another normalizer"),
    "words": (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "has another pre_tokenizer"),
    "a hole": (in_vocabulary(new=IMAGE_TOKEN + 5), "not in one run"),
    "an id twice": (in_vocabulary(new=40), "not in one run"),
    "a token after the image token": (
        lambda d: d["added_tokens"].append(token("<x>", IMAGE_TOKEN + 1)),
        "not in one run (look at id",
    ),
    "an image token further on": (lambda d: d["added_tokens"][-1].update(id=IMAGE_TOKEN + 3), f"(look at id {IMAGE_TOKEN + 3})"),
    "the image token in the vocabulary": (
        lambda d: d["added_tokens"].append(token("<image>", 9)),
        "'<image>' cannot have the id 9",
    ),
    "loc and seg one too high": (shift, f"was made from a plain Gemma vocabulary: <image> is {BASE_SIZE}"),
    "two ids": (lambda d: d["added_tokens"].append(token("?", 5)), "in the vocabulary and 5 as added"),
    "a negative id": (in_vocabulary(new=-1), "the token 'new' cannot have the id -1"),
    "an id of text": (in_vocabulary(new="5"), "the token 'new' cannot have the id '5'"),
    "a broken id": (in_vocabulary(new=1.5), "the token 'new' cannot have the id 1.5"),
    "true for an id": (in_vocabulary(new=True), "the token 'new' cannot have the id True"),
    "an empty piece": (in_vocabulary(_=IMAGE_TOKEN), "the token '' cannot"),
    "a NUL": (in_vocabulary(**{"a\0b": IMAGE_TOKEN}), "the token 'a\\x00b' cannot"),
    "half a character": (in_vocabulary(**{"\ud800": IMAGE_TOKEN}), "the token '\\ud800' cannot"),
    "a piece without end": (in_vocabulary(**{"a" * 300: IMAGE_TOKEN}), "aaa' cannot"),
    "added tokens as an object": (lambda d: d.update(added_tokens={"<image>": 1}), "added_tokens is not a list"),
    "an added token without text": (lambda d: d["added_tokens"].append({"id": 3}), "the token None cannot have the id 3"),
    "an added token without id": (lambda d: d["added_tokens"].append({"content": "x"}), "the token 'x' cannot have the id None"),
    "no merge to a piece": (lambda d: d["model"]["merges"].remove("c a"), "no merge to 'ca'"),
    "a merge of an unknown piece": (lambda d: d["model"]["merges"].append("c 漢"), "is not of pieces to a piece"),
    "merges out of order": (lambda d: d["model"]["merges"].append("c a"), "do not follow each other"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_vocabulary_that_cannot_be_rebuilt_is_refused_in_one_line_with_its_name(tmp_path, case, capfd):
    change, words = BROKEN[case]
    data = tiny()
    change(data)
    save(tmp_path, tokenizer=data)
    with pytest.raises(CheckpointError) as error:
        PaliGemmaTokenizer.from_folder(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "tokenizer.json"))
    assert words in str(error.value)
    assert "copy tokenizer.model from" in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["<pad>", "<eos>", "<bos>", "<unk>"])
def test_a_vocabulary_without_a_special_token_is_refused(text):
    data = json.loads(written("tiny").replace(text, "<other>"))
    with pytest.raises(CheckpointError, match=f"tokenizer.json has no token {text}"):
        sentencepiece_from_json(data)


@pytest.mark.parametrize("stand_in", ["\x00", "é", "\n", "<0xG9>"])
def test_a_vocabulary_without_a_byte_is_refused(stand_in):
    byte = {"\x00": "<0x00>", "é": "<0xE9>", "\n": "<0x0A>", "<0xG9>": "<0x99>"}[stand_in]
    data = tiny()
    data["model"]["vocab"] = {text.replace(byte, "<none>"): i for text, i in data["model"]["vocab"].items()}
    with pytest.raises(CheckpointError, match=f"has no piece for the byte {byte}"):
        sentencepiece_from_json(data)


def test_a_plain_gemma_vocabulary_is_refused_and_the_right_file_named(tmp_path):
    save(tmp_path, tokenizer=without_places())
    with pytest.raises(
        CheckpointError, match=r"a plain Gemma vocabulary will not do: copy tokenizer\.model from a PaliGemma"
    ) as error:
        PaliGemmaTokenizer.from_folder(tmp_path)
    assert "\n" not in str(error.value)


UNREADABLE = {
    "nothing": b"",
    "half": lambda: written("tiny").encode()[:5000],
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "no UTF-8": b'{"model": "\xff"}',
    "a list": b"[]",
    "nested without end": b'{"model":' + b"[" * 200_000,
    "a number without end": b'{"model":' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_is_no_json_is_named_in_one_line(tmp_path, file, case):
    save(tmp_path, tokenizer=tiny())
    content = UNREADABLE[case]
    (tmp_path / file).write_bytes(content() if callable(content) else content)
    with pytest.raises(CheckpointError, match=r"cannot be read as JSON|is not a JSON object") as error:
        read_tokenizer_json(tmp_path)
    assert str(error.value).startswith(str(tmp_path / file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("added_tokens", {"<x>": "7"}),
        ("added_tokens", {"<x>": [7]}),
        ("tokenizer_config", {"added_tokens_decoder": [1]}),
        ("tokenizer_config", {"added_tokens_decoder": {"7": "<x>"}}),
        ("tokenizer_config", {"added_tokens_decoder": {"seven": {"content": "<x>"}}}),
        ("tokenizer_config", {"added_tokens_decoder": {"9" * 5000: {"content": "<x>"}}}),
        ("tokenizer_config", {"added_tokens_decoder": {"²": {"content": "<x>"}}}),
    ],
)
def test_a_broken_file_beside_the_vocabulary_is_named(tmp_path, file, content):
    save(tmp_path, tokenizer=tiny(), **{file: content})
    with pytest.raises(CheckpointError) as error:
        read_tokenizer_json(tmp_path)
    assert str(error.value).startswith(str(tmp_path / f"{file}.json"))
    assert "\n" not in str(error.value)


def test_a_file_of_absurd_size_is_refused_unread(tmp_path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        os.truncate(file.fileno(), LARGEST_FILE + 1)
    with pytest.raises(CheckpointError, match="is too large for a vocabulary"):
        read_tokenizer_json(tmp_path)


def test_a_million_merges_are_refused_at_the_first_wrong_one():
    data = tiny()
    data["model"]["merges"] = ["c a"] * 10**6
    with pytest.raises(CheckpointError, match="only some of the merges to 'ca'"):
        sentencepiece_from_json(data)


def test_merges_nested_as_deep_as_json_allows_are_refused_in_one_line():
    deep = "x"
    for _ in range(sys.getrecursionlimit() - 50):
        deep = [deep]
    for place in (lambda d: d["model"]["merges"].append(deep), lambda d: d.update(normalizer=deep), in_vocabulary(new=deep)):
        data = tiny()
        place(data)
        with pytest.raises(CheckpointError):
            sentencepiece_from_json(data)


def small():
    """Without most of the loc and seg tokens: a damaged one is soon read."""
    data = without_places()
    data["added_tokens"] += [token(text, BASE_SIZE + i) for i, text in enumerate((*LOC_TOKENS[:3], "<image>"))]
    return data


SMALL = small()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=5) | st.sampled_from(PIECES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CUTS = st.tuples(st.integers(0, 10**9), st.integers(0, 40), st.binary(max_size=8))


def put_somewhere(data, value, rng):
    """Puts a value in the place of a random one, or beside it, at a random depth."""
    here = data
    while True:
        keys = list(here) if isinstance(here, dict) else range(len(here))
        key = rng.choice(keys) if keys else None
        if key is None or rng.random() < 0.3 or not isinstance(here[key], dict | list):
            break
        here = here[key]
    if isinstance(here, list):
        here.insert(rng.randrange(len(here) + 1), value)
    elif rng.random() < 0.3 and key is not None:
        here[rng.choice(PIECES)] = here.pop(key)
    else:
        here["model" if key is None else key] = value


def judged(folder, content):
    """Reads a folder with this tokenizer.json: a model that works, or one line that names the file."""
    (folder / "tokenizer.json").write_bytes(content)
    try:
        pieces = SentencePieceProcessor(model_proto=read_tokenizer_json(folder))
    except CheckpointError as error:
        assert str(error).startswith(str(folder / "tokenizer.json"))
        assert "\n" not in str(error)
        str(error).encode()
        return False
    assert pieces.decode(pieces.encode("caption en\n <loc0001> é漢")) == "caption en\n <loc0001> é漢"
    return True


def test_the_file_that_is_damaged_is_whole_before(tmp_path):
    assert judged(tmp_path, json.dumps(SMALL).encode())


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_any_value_in_any_place_gives_a_working_model_or_one_line(damaged, values, rng):
    data = deepcopy(SMALL)
    for value in values:
        put_somewhere(data, value, rng)
    judged(damaged, json.dumps(data).encode())


@settings(max_examples=200, deadline=None)
@given(st.lists(CUTS, min_size=1, max_size=3))
def test_a_damaged_file_gives_a_working_model_or_one_line(damaged, cuts):
    content = json.dumps(SMALL, ensure_ascii=False).encode()
    for at, removed, inserted in cuts:
        place = at % len(content)
        content = content[:place] + inserted + content[place + removed :]
    judged(damaged, content)


def test_vocabularies_of_random_words_give_the_ids_that_tokenizers_gives():
    rng, accepted = random.Random(0), 0
    for _ in range(150):
        data = deepcopy(SMALL)
        words = sorted({"".join(rng.choices("xyz", k=rng.randrange(2, 5))) for _ in range(rng.randrange(2, 12))})
        rng.shuffle(words)
        vocab = data["model"]["vocab"]
        data["added_tokens"] = [entry for entry in data["added_tokens"] if entry["content"] not in PLACES]
        vocab |= {word: len(vocab) + i for i, word in enumerate(words)}
        merges = [
            f"{word[:i]} {word[i:]}" for word in words for i in range(1, len(word)) if word[:i] in vocab and word[i:] in vocab
        ]
        data["model"]["merges"] += merges if rng.random() < 0.8 else merges[1:]
        theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
        try:
            ours = SentencePieceProcessor(model_proto=sentencepiece_from_json(data))
        except CheckpointError:
            continue
        accepted += 1
        inputs = ["".join(rng.choices("xyz \n", k=rng.randrange(25))) for _ in range(100)]
        assert ours.encode(inputs) == [encoding.ids for encoding in theirs.encode_batch(inputs)]
    assert 100 < accepted < 150
