"""SentencePiece's model file, read and written piece by piece: what a BPE vocabulary with byte fallback needs of it.

Format: protocol buffers, message ModelProto of sentencepiece_model.proto (https://github.com/google/sentencepiece).
The protobuf package is not used: the code that sentencepiece ships for it runs only under one newest protobuf.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from .errors import CheckpointError

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of ModelProto
_TEXT, _SCORE, _KIND = 1, 2, 3  # of a piece
_MODEL_TYPE, _VOCAB_SIZE, _BYTE_FALLBACK, _BPE = 3, 4, 35, 2  # of TrainerSpec, and a value
_SPECIAL = {"<unk>": (40, 45), "<bos>": (41, 46), "<eos>": (42, 47), "<pad>": (43, 48)}  # of TrainerSpec: id, piece
_NAME, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 1, 3, 4, 5  # of NormalizerSpec
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_SCORE_KEY = bytes([_SCORE << 3 | _FIXED32])
_LONGEST_VARINT = 10  # bytes
_Field = int | bytes


class Kind(IntEnum):
    """How a piece behaves."""

    NORMAL = 1  # a result of merges
    UNKNOWN = 2
    CONTROL = 3  # no text gives it
    USER_DEFINED = 4  # found in a text before all merges
    UNUSED = 5
    BYTE = 6  # a byte of a character that no piece has


@dataclass(frozen=True, slots=True)
class Piece:
    """One line of a vocabulary; its id is its place."""

    text: str
    score: float  # of two possible merges, the one with the better result comes first
    kind: Kind


def write_model(pieces: Sequence[Piece]) -> bytes:
    """A model with Gemma's settings: BPE, byte fallback, a space becomes U+2581, nothing else is normalised."""
    ids = {piece.text: index for index, piece in enumerate(pieces)}
    trainer = _number(_MODEL_TYPE, _BPE) + _number(_VOCAB_SIZE, len(pieces)) + _number(_BYTE_FALLBACK, 1)
    trainer += b"".join(_number(field, ids[text]) for text, (field, _) in _SPECIAL.items())
    trainer += b"".join(_chunk(field, text.encode()) for text, (_, field) in _SPECIAL.items())
    normalizer = _chunk(_NAME, b"identity") + _number(_DUMMY_PREFIX, 0) + _number(_REMOVE_SPACES, 0) + _number(_ESCAPE_SPACES, 1)
    return b"".join(map(_piece_field, pieces)) + _chunk(_TRAINER, trainer) + _chunk(_NORMALIZER, normalizer)


def read_pieces(model: bytes, name: str = "tokenizer.model") -> list[Piece]:
    """The pieces of a serialised model, in the order of their ids. Raises CheckpointError with `name` where it is damaged."""
    try:
        return [_piece(value) for field, value in _fields(model) if field == _PIECES]
    except (IndexError, TypeError, ValueError, struct.error):
        raise CheckpointError(f"{name} is not a SentencePiece model; copy it again from the checkpoint") from None


def _piece_field(piece: Piece) -> bytes:
    text = piece.text.encode()
    return _chunk(_PIECES, b"".join((_chunk(_TEXT, text), _SCORE_KEY, struct.pack("<f", piece.score), _number(_KIND, piece.kind))))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _chunk(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    if value <= 0x7F:
        return bytes((value,))
    low = bytearray()
    while value > 0x7F:
        low.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(low) + bytes([value])


def _piece(data: _Field) -> Piece:
    if not isinstance(data, bytes):
        raise TypeError
    text, score, kind = b"", 0.0, Kind.NORMAL
    for field, value in _fields(data):
        if field == _TEXT:
            text = bytes(value) if isinstance(value, bytes) else b""
        elif field == _SCORE and isinstance(value, bytes):
            score = struct.unpack("<f", value)[0]
        elif field == _KIND and isinstance(value, int):
            kind = Kind(value)
    return Piece(text.decode(), score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, _Field]]:
    """Every field of a message: its number, and its value as a number or as bytes."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        size = {_FIXED64: 8, _FIXED32: 4}.get(key & 7)
        if key & 7 == _VARINT:
            value, at = _read_varint(data, at)
            yield key >> 3, value
            continue
        if key & 7 == _BYTES:
            size, at = _read_varint(data, at)
        if size is None or at + size > len(data):
            raise ValueError
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = 0
    for count in range(_LONGEST_VARINT):
        byte = data[at + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, at + count + 1
    raise ValueError
