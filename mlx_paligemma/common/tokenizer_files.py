"""The tokenizer files of a Hugging Face folder, made of a SentencePiece model.

Format: tokenizer.json of Hugging Face tokenizers (https://github.com/huggingface/tokenizers), with the two small files that
transformers reads beside it. They give the ids of the SentencePiece model, save for what SentencePiece never does: the text of a
special token ("<bos>", "<image>") in a prompt becomes that token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .bpe_merges import merges_of_scores
from .errors import CheckpointError
from .sentencepiece_proto import Kind, Piece, read_pieces
from .tokenizer_json import BYTES, CONTROL, IMAGE, REPLACE_SPACES, SPACE, UNKNOWN

NAMES = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
MASK = "<mask>"
NO_LIMIT = int(1e30)  # transformers' model_max_length for "as long as the model can"
_Tokens = dict[int, dict[str, Any]]  # by id


def tokenizer_files(model: bytes, image_token_id: int) -> dict[str, bytes]:
    """The content of each tokenizer file, by file name; the same bytes every time.

    Args:
        model: a serialised SentencePiece model.
        image_token_id: the id of `<image>`, right after the last piece.

    Raises:
        CheckpointError: the model is damaged, or has what tokenizer.json cannot express.
    """
    pieces = read_pieces(model)
    if image_token_id != len(pieces):
        reason = f"the image token is {image_token_id}, and tokenizer.model has {len(pieces)} pieces"
        raise CheckpointError(
            f"{reason}: tokenizer.json can hold it only right after the last piece; copy both from one checkpoint"
        )
    tokens = _added_tokens(pieces)
    tokens[image_token_id] = _token(IMAGE, special=True)
    return {
        "tokenizer.model": model,
        "tokenizer.json": _json(_tokenizer(pieces, tokens)),
        "tokenizer_config.json": _json(_tokenizer_config(tokens), indent=2),
        "special_tokens_map.json": _json(NAMES | {"additional_special_tokens": [IMAGE]}, indent=2),
        "added_tokens.json": _json({IMAGE: image_token_id}, indent=2),
    }


def _tokenizer(pieces: Sequence[Piece], tokens: _Tokens) -> dict[str, Any]:
    texts = _texts(pieces)
    model = {
        "type": "BPE", "dropout": None, "unk_token": UNKNOWN, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
        "vocab": {text: index for index, text in enumerate(texts)}, "merges": merges_of_scores(pieces, texts),
    }  # fmt: skip
    spaces = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": index} | token for index, token in sorted(tokens.items())],
        "normalizer": REPLACE_SPACES, "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]}, "model": model,
    }  # fmt: skip


def _texts(pieces: Sequence[Piece]) -> list[str]:
    """What each piece is called in tokenizer.json.

    A byte piece goes by its character where other pieces hold that: SentencePiece joins characters that are no piece, BPE does
    not. In Gemma's vocabulary this is the tab.
    """
    known = {piece.text for piece in pieces}
    joined = {character for piece in pieces if piece.kind == Kind.NORMAL and len(piece.text) > 1 for character in piece.text}
    stand_ins = {BYTES[ord(character)]: character for character in joined - known if character.isascii()}
    strange = sorted(joined - known - set(stand_ins.values()))
    if strange:
        raise CheckpointError(
            f"tokenizer.model has pieces with the character {strange[0]!a}, which is no piece; tokenizer.json cannot say that"
        )
    return [stand_ins.get(piece.text, piece.text) for piece in pieces]


def _added_tokens(pieces: Sequence[Piece]) -> _Tokens:
    """The pieces that no merge makes. Those of text are looked for after spaces are replaced, since some are runs of spaces."""
    special = (*CONTROL, UNKNOWN)
    return {
        index: _token(piece.text, special=piece.text in special)
        for index, piece in enumerate(pieces)
        if piece.kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)
    }


def _token(text: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, "special": special}
    return {"content": text} | flags


def _tokenizer_config(tokens: _Tokens) -> dict[str, Any]:
    has_mask = any(token["content"] == MASK for token in tokens.values())
    return NAMES | {
        "add_bos_token": False, "add_eos_token": False,  # the processor writes them itself
        "added_tokens_decoder": {str(index): token for index, token in sorted(tokens.items())},
        "clean_up_tokenization_spaces": False, "extra_special_tokens": {"image_token": IMAGE},
        "mask_token": MASK if has_mask else None, "model_max_length": NO_LIMIT, "processor_class": "PaliGemmaProcessor",
        "sp_model_kwargs": {}, "spaces_between_special_tokens": False, "tokenizer_class": "GemmaTokenizer",
    }  # fmt: skip


def _json(data: Mapping[str, Any], indent: int | None = None) -> bytes:
    separators = (",", ":") if indent is None else (",", ": ")
    return (json.dumps(data, ensure_ascii=False, indent=indent, separators=separators) + "\n").encode()
