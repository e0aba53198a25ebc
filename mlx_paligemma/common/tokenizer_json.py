"""A SentencePiece model out of a tokenizer.json, for folders that have nothing else.

Format: tokenizer.json of Hugging Face tokenizers (https://github.com/huggingface/tokenizers), BPE with a list of merges.
The ids are those of Hugging Face's tokenizers but for two differences, both of which make of a text what it was in training: the
text of a special token stays text, and a run of more than 31 spaces begins with the longest piece.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from .bpe_merges import COPY, scores_of_merges, shown
from .errors import CheckpointError
from .sentencepiece_proto import Kind, Piece, write_model

IMAGE, SPACE = "<image>", "\u2581"
UNKNOWN, CONTROL = "<unk>", ("<pad>", "<eos>", "<bos>")
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
REPLACE_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
LARGEST_FILE = 2**26  # bytes; Gemma's has 12 to 35 MB
LONGEST_PIECE = 256  # characters; Gemma's has 31
LONGEST_NUMBER = 18  # digits of an id
_Ids = dict[str, int]  # by text


def read_tokenizer_json(folder: Path) -> bytes:
    """The vocabulary of `folder/tokenizer.json` as a SentencePiece model.

    Tokens that only `added_tokens.json` or the `added_tokens_decoder` of `tokenizer_config.json` name belong to it.

    Raises:
        CheckpointError: a file cannot be read, or the vocabulary is not one of SentencePiece's; the message names the file.
    """
    path, config, more = folder / "tokenizer.json", folder / "tokenizer_config.json", folder / "added_tokens.json"
    data, added = _read_object(path), _read_object(more) if more.is_file() else {}
    decoder = _read_object(config).get("added_tokens_decoder") or {} if config.is_file() else {}
    if not isinstance(decoder, Mapping) or not all(isinstance(token, Mapping) for token in decoder.values()):
        raise CheckpointError(f"{config}: added_tokens_decoder is not an object of tokens; copy it again from the checkpoint")
    tokens = [(token.get("content"), int(i) if i.isdecimal() and len(i) <= LONGEST_NUMBER else i) for i, token in decoder.items()]
    return sentencepiece_from_json(data, str(path), _as_ids(tokens, str(config)) | _as_ids(added.items(), str(more)))


def sentencepiece_from_json(data: Mapping[str, Any], name: str = "tokenizer.json", added: Mapping[str, int] | None = None) -> bytes:
    """The serialised SentencePiece model that gives the same ids as a tokenizer.json.

    Args:
        data: the parsed file.
        name: stands in error messages.
        added: ids of tokens that stand elsewhere in the folder, by text.

    Raises:
        CheckpointError: the vocabulary is not Gemma's kind, contradicts itself, or has what SentencePiece cannot express.
    """
    model = _bpe_model(data, name)
    tokens = _added_tokens(data, name) | dict(added or {})
    ids = _whole(_together(_as_ids(model["vocab"].items(), name), tokens, name), name)
    for text in (*CONTROL, UNKNOWN):
        if text not in ids:
            raise CheckpointError(f"{name} has no token {text}; {COPY}")
    bytes_as = _byte_characters(ids, tokens, name)
    kinds = {text: Kind.BYTE if text in bytes_as else _kind(text, tokens) for text in ids}
    scores = scores_of_merges(model["merges"], kinds, set(bytes_as) - set(BYTES), name)
    return write_model([Piece(bytes_as.get(text, text), scores.get(text, 0.0), kinds[text]) for text in ids])


def _read_object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise CheckpointError(f"{path} is too large for a vocabulary; copy it again from the checkpoint")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} cannot be read as JSON; copy it again from the checkpoint") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object; copy it again from the checkpoint")
    return data


def _bpe_model(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The `model` of the file, once all its settings are Gemma's."""
    model = data.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("vocab"), Mapping) or not isinstance(model.get("merges"), list):
        raise CheckpointError(f"{name} holds no BPE vocabulary with merges; {COPY}")
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges") if model.get(key)]
    odd += [] if model.get("type", "BPE") == "BPE" else ["type"]
    odd += [] if model.get("byte_fallback") is True else ["byte_fallback"]
    odd += [] if data.get("normalizer") in (REPLACE_SPACES, _sequence_of(REPLACE_SPACES)) else ["normalizer"]
    odd += [] if _splits_at_spaces(data.get("pre_tokenizer")) else ["pre_tokenizer"]
    if odd:
        raise CheckpointError(f"{name} has another {odd[0]} than PaliGemma's vocabulary; {COPY}")
    return model


def _sequence_of(normalizer: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [normalizer]}


def _splits_at_spaces(pre_tokenizer: Any) -> bool:
    """Whether a pre-tokenizer does nothing: there is none, or it looks for the spaces that the normalizer has replaced."""
    return pre_tokenizer is None or (
        isinstance(pre_tokenizer, Mapping)
        and pre_tokenizer.get("type") == "Split"
        and pre_tokenizer.get("pattern") == {"String": " "}
    )


def _as_ids(items: Iterable[tuple[Any, Any]], name: str) -> _Ids:
    """Pairs of text and id as a mapping, once each is what it should be."""
    ids: _Ids = {}
    for text, index in items:
        if not _is_text(text) or type(index) is not int or index < 0 or ids.get(text, index) != index:
            raise CheckpointError(f"{name}: the token {shown(text)} cannot have the id {shown(index)}; {COPY}")
        ids[text] = index
    return ids


def _is_text(text: Any) -> bool:
    """Whether this can be a piece: not empty, not of absurd length, whole Unicode, no NUL."""
    if not isinstance(text, str) or not 0 < len(text) <= LONGEST_PIECE:
        return False
    return text.isprintable() or not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)


def _added_tokens(data: Mapping[str, Any], name: str) -> _Ids:
    tokens = data.get("added_tokens") or []
    if not isinstance(tokens, list) or not all(isinstance(token, Mapping) for token in tokens):
        raise CheckpointError(f"{name}: added_tokens is not a list of tokens; {COPY}")
    return _as_ids([(token.get("content"), token.get("id")) for token in tokens], name)


def _together(vocabulary: _Ids, tokens: _Ids, name: str) -> _Ids:
    for text, index in tokens.items():
        if vocabulary.get(text, index) != index:
            raise CheckpointError(
                f"{name}: the token {shown(text)} is {vocabulary[text]} in the vocabulary and {index} as added; {COPY}"
            )
    return vocabulary | tokens


def _whole(ids: _Ids, name: str) -> _Ids:
    """All tokens but the image token, in the order of their ids, which must be 0 to n - 1, with the image token's next."""
    pieces = dict(sorted(((text, i) for text, i in ids.items() if text != IMAGE), key=lambda item: item[1]))
    image = ids.get(IMAGE, len(pieces))
    if pieces.get("<loc0000>") == image + 1:
        raise CheckpointError(
            f"{name} was made from a plain Gemma vocabulary: {IMAGE} is {image}, all loc and seg tokens are one too high; {COPY}"
        )
    wrong = next((i for place, i in enumerate(pieces.values()) if i != place), image if image != len(pieces) else None)
    if wrong is not None:
        raise CheckpointError(f"{name}: the ids of its {len(pieces)} pieces are not in one run (look at id {shown(wrong)}); {COPY}")
    return pieces


def _byte_characters(ids: _Ids, added: Collection[str], name: str) -> dict[str, str]:
    """The byte pieces, by the text that stands for each: itself, or its character, as the tab does in Gemma's files."""
    stand_ins = {piece if piece in ids else chr(value): piece for value, piece in enumerate(BYTES)}
    for text, piece in stand_ins.items():
        if text not in ids or (text != piece and (text in added or not text.isascii())):
            raise CheckpointError(f"{name} has no piece for the byte {piece}; {COPY}")
    return stand_ins


def _kind(text: str, added: Collection[str]) -> Kind:
    if text in CONTROL:
        return Kind.CONTROL
    if text == UNKNOWN:
        return Kind.UNKNOWN
    return Kind.USER_DEFINED if text in added else Kind.NORMAL
