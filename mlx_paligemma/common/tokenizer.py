"""Text to token ids and back: a SentencePiece model, plus the rules of PaliGemma around it.

The vocabulary holds the text pieces, then <loc0000>..<loc1023> and <seg000>..<seg127>. The image token lies outside it:
no text can produce one. Special-token text in a prompt ("<bos>") stays text, as in big_vision.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from .errors import CheckpointError

NUM_LOC, NUM_SEG = 1024, 128
LOC_TOKENS = tuple(f"<loc{k:04d}>" for k in range(NUM_LOC))
SEG_TOKENS = tuple(f"<seg{k:03d}>" for k in range(NUM_SEG))


class PaliGemmaTokenizer:
    """A SentencePiece model with the loc and seg pieces in one unbroken run each."""

    def __init__(self, model: bytes, name: str = "tokenizer.model"):
        """Parse a serialised SentencePiece model; `name` stands in error messages.

        Raises:
            CheckpointError: the bytes are no SentencePiece model, or the model is not PaliGemma's.
        """
        try:
            self._pieces = SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError, TypeError):
            raise CheckpointError(f"{name} is not a SentencePiece model; copy it again from the checkpoint") from None
        self.size: int = self._pieces.get_piece_size()
        self.pad_token_id, self.eos_token_id, self.bos_token_id = (
            self._control(name, text) for text in ("<pad>", "<eos>", "<bos>")
        )
        self.newline_token_id = self._newline(name)
        self.first_loc = self._run(name, LOC_TOKENS)
        self.first_seg = self._run(name, SEG_TOKENS)

    @classmethod
    def from_folder(cls, folder: Path) -> PaliGemmaTokenizer:
        """Read `folder/tokenizer.model`. Raises CheckpointError when it is missing or not PaliGemma's."""
        path = folder / "tokenizer.model"
        try:
            return cls(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise CheckpointError(f"{folder} has no tokenizer.model; copy it there from the checkpoint") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone, without bos, eos or newline added."""
        ids: list[int] = self._pieces.encode(text)
        return ids

    def encode_prefix(self, text: str) -> list[int]:
        """bos, the text, and the newline as a token of its own, whatever the text ends in."""
        return [self.bos_token_id, *self.encode(text), self.newline_token_id]

    def encode_suffix(self, text: str) -> list[int]:
        """The text and eos."""
        return [*self.encode(text), self.eos_token_id]

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`. Control tokens and ids beyond the vocabulary (image token, padding rows) give nothing."""
        return self._pieces.decode(self._known(ids))

    def stream(self) -> TextStream:
        """A decoder for ids that arrive one at a time."""
        return TextStream(self)

    def _known(self, ids: list[int]) -> list[int]:
        return [i for i in ids if 0 <= i < self.size and not self._pieces.is_control(i)]

    def _control(self, name: str, piece: str) -> int:
        index: int = self._pieces.piece_to_id(piece)
        if self._pieces.id_to_piece(index) != piece or not self._pieces.is_control(index):
            raise CheckpointError(f"{name} has no control piece {piece}; it is not a PaliGemma vocabulary")
        return index

    def _newline(self, name: str) -> int:
        ids: list[int] = self._pieces.encode("\n")
        if len(ids) != 1:
            raise CheckpointError(f"{name} has no single piece for the newline; it is not a PaliGemma vocabulary")
        return ids[0]

    def _run(self, name: str, pieces: tuple[str, ...]) -> int:
        first: int = self._pieces.piece_to_id(pieces[0])
        if any(self._pieces.id_to_piece(min(first + k, self.size - 1)) != piece for k, piece in enumerate(pieces)):
            raise CheckpointError(f"{name} lacks the tokens {pieces[0]}..{pieces[-1]}; a plain Gemma vocabulary will not do")
        return first


@dataclass
class TextStream:
    """Turns ids into text as they come, and never lets out half a character.

    The text of all pieces so far equals `decode` of all ids so far, once `finish` has been called.
    """

    tokenizer: PaliGemmaTokenizer
    _ids: list[int] = field(default_factory=list)
    _shown: int = 0  # characters given out

    def add(self, token_id: int) -> str:
        """The new text that is certain after this id, often all of it, sometimes none."""
        self._ids.append(token_id)
        text = self.tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):  # bytes of an unfinished character
            return ""
        return self._take(text)

    def finish(self) -> str:
        """What is left, an unfinished character as U+FFFD."""
        return self._take(self.tokenizer.decode(self._ids))

    def _take(self, text: str) -> str:
        new, self._shown = text[self._shown :], max(self._shown, len(text))
        return new
