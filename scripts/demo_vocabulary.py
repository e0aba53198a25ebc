"""Builds the demo checkpoint's SentencePiece vocabulary: trained on its own sentences, then the loc and seg pieces appended."""

from __future__ import annotations

import io
import string

import numpy as np
from sentencepiece import SentencePieceTrainer
from sentencepiece import sentencepiece_model_pb2 as pb

from mlx_paligemma.common.tokenizer import LOC_TOKENS, SEG_TOKENS
from mlx_paligemma.demo.questions import ask
from mlx_paligemma.demo.scenes import draw_scene


def build_vocabulary(scenes: int = 3000, pieces: int = 560) -> bytes:
    """A serialised SentencePiece model with Gemma's settings: BPE, byte fallback, single digits, nothing normalised."""
    model = pb.ModelProto.FromString(_train(_sentences(scenes), pieces))
    for text in LOC_TOKENS + SEG_TOKENS:
        piece = model.pieces.add()
        piece.piece, piece.type, piece.score = text, pb.ModelProto.SentencePiece.USER_DEFINED, 0.0
    model.trainer_spec.vocab_size = len(model.pieces)
    return model.SerializeToString()


def _sentences(scenes: int) -> list[str]:
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(scenes):
        scene = draw_scene(rng, size=112)
        question = ask(scene, rng, lambda shape: ())
        lines += [question.prefix, *(part.split(">")[-1].strip() for part in question.suffix.split(" ; "))]
    return [line for line in lines if line]


def _train(sentences: list[str], pieces: int) -> bytes:
    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=out, model_type="bpe", vocab_size=pieces, hard_vocab_limit=False,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>",
        user_defined_symbols=["<mask>", "\n", "\n\n"], byte_fallback=True, split_digits=True,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False, character_coverage=1.0,
        required_chars=string.ascii_letters + string.digits + string.punctuation.replace("<", ""), num_threads=1, minloglevel=2,
    )  # fmt: skip
    return out.getvalue()
