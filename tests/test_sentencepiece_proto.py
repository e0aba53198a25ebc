"""Our few lines of protocol buffers read and write what Google's library does."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as pb
from vocabularies import NAMES, model_of, sentencepiece

from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.sentencepiece_proto import Kind, Piece, read_pieces, write_model

SPECIAL = [Piece(text, 0.0, Kind.CONTROL) for text in ("<pad>", "<eos>", "<bos>")] + [Piece("<unk>", 0.0, Kind.UNKNOWN)]
BYTES = [Piece(f"<0x{value:02X}>", 0.0, Kind.BYTE) for value in range(256)]


@pytest.mark.parametrize("name", NAMES)
def test_the_pieces_are_those_that_protobuf_reads(name):
    expected = [Piece(piece.piece, piece.score, Kind(piece.type)) for piece in pb.ModelProto.FromString(model_of(name)).pieces]
    assert read_pieces(model_of(name)) == expected


def test_a_model_is_the_one_that_protobuf_would_write():
    pieces = [
        *SPECIAL,
        *BYTES,
        Piece("é", -1.5, Kind.NORMAL),
        Piece("\n", 0.0, Kind.USER_DEFINED),
        Piece("x" * 300, -3e5, Kind.NORMAL),
    ]
    model = pb.ModelProto.FromString(write_model(pieces))
    assert [Piece(piece.piece, piece.score, Kind(piece.type)) for piece in model.pieces] == pieces
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    assert (trainer.model_type, trainer.byte_fallback, trainer.vocab_size) == (pb.TrainerSpec.BPE, True, len(pieces))
    assert (trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id) == (0, 1, 2, 3)
    assert (trainer.pad_piece, trainer.eos_piece, trainer.bos_piece, trainer.unk_piece) == ("<pad>", "<eos>", "<bos>", "<unk>")
    assert (normalizer.name, normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces) == ("identity", False, False)
    assert normalizer.escape_whitespaces
    assert model.SerializeToString(deterministic=True) == write_model(pieces)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_was_read_and_written_gives_the_same_ids(name):
    again = sentencepiece(write_model(read_pieces(model_of(name))))
    text = "detect cat ; <loc0012>\n\n  漢 é 😀"
    assert again.encode(text) == sentencepiece(model_of(name)).encode(text)
    assert (again.pad_id(), again.eos_id(), again.bos_id(), again.unk_id()) == (0, 1, 2, 3)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(model_of("tiny"))), st.binary(max_size=12), st.integers(0, 12))
def test_a_damaged_model_is_read_or_refused_in_one_line(at, inserted, removed):
    model = model_of("tiny")
    try:
        assert read_pieces(model[:at] + inserted + model[at + removed :], "some/tokenizer.model")
    except CheckpointError as error:
        assert str(error) == "some/tokenizer.model is not a SentencePiece model; copy it again from the checkpoint"


@pytest.mark.parametrize(
    "model",
    [
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\xff" * 40,
        b"\x20" + b"\x80" * 11 + b"\x01",
        b"\x08\x01",
        b"\x0b",
        b"\x0a\x02\x18\x09",
        b"\x0a\x03\x0a\x01\xff",
    ],
    ids=[
        "no length",
        "4 GB",
        "endless number",
        "a number of 12 bytes",
        "a number for a piece",
        "a group",
        "an unknown kind",
        "no UTF-8",
    ],
)
def test_bytes_that_are_no_model_are_refused(model):
    with pytest.raises(CheckpointError, match="is not a SentencePiece model"):
        read_pieces(model)
