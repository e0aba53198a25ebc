"""Text to token ids and back: a SentencePiece model, plus the rules of PaliGemma around it.

The vocabulary holds the text pieces, then <loc0000>..<loc1023> and <seg000>..<seg127>. The image token lies outside it:
no text can produce one. Special-token text in a prompt ("<bos>") stays text, as in big_vision.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from .config import PaliGemmaConfig
from .errors import CheckpointError, PromptError
from .tokenizer_json import read_tokenizer_json

VOCABULARY_FILES = ("tokenizer.model", "tokenizer.json", "paligemma_tokenizer.model")  # the last is big_vision's name
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
        self.model = model
        try:
            self._pieces = SentencePieceProcessor(model_proto=model)
            self.size: int = self._pieces.get_piece_size() if model else 0  # no bytes at all are taken for a model to come
        except (RuntimeError, ValueError, TypeError):
            self.size = 0
        if not self.size:
            raise CheckpointError(f"{name} is not a SentencePiece model; copy it again from the checkpoint")
        self.pad_token_id, self.eos_token_id, self.bos_token_id = (
            self._control(name, text) for text in ("<pad>", "<eos>", "<bos>")
        )
        if self._pieces.decode(self._pieces.encode("  a  ")) != "  a  ":  # TextStream relies on this too
            raise CheckpointError(f"{name} changes spaces; it is not a PaliGemma vocabulary")
        self.newline_token_id = self._newline(name)
        self.first_loc = self._run(name, LOC_TOKENS)
        self.first_seg = self._run(name, SEG_TOKENS)
        self.model, self.name = model, name

    @classmethod
    def from_folder(cls, folder: Path) -> PaliGemmaTokenizer:
        """Read the first of VOCABULARY_FILES that is there. Raises CheckpointError when none is, or it is not PaliGemma's."""
        path = folder / VOCABULARY_FILES[0]
        try:
            path = next((folder / name for name in VOCABULARY_FILES if (folder / name).exists()), path)
            if path.exists() and not path.is_file():
                raise CheckpointError(f"{path} is not a file; copy the file itself from the checkpoint")
            return cls(read_tokenizer_json(folder) if path.suffix == ".json" else path.read_bytes(), str(path))
        except FileNotFoundError:
            raise CheckpointError(
                f"{folder} has no tokenizer.model; copy it there from the checkpoint, or its tokenizer.json, "
                "or big_vision's paligemma_tokenizer.model"
            ) from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions, or copy it again") from None

    @property
    def pieces(self) -> SentencePieceProcessor:
        """The SentencePiece model itself."""
        return self._pieces

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone, without bos, eos or newline added.

        Raises:
            PromptError: the text is not Unicode, as an argument in another encoding is not.
        """
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise PromptError(f"{text!a} is not whole Unicode text; write it in UTF-8")
        ids: list[int] = self._pieces.encode(text)
        return ids

    def encode_prefix(self, text: str) -> list[int]:
        """bos, the text, and the newline as a token of its own, whatever the text ends in."""
        return [self.bos_token_id, *self.encode(text), self.newline_token_id]

    def encode_suffix(self, text: str) -> list[int]:
        """The text and eos."""
        return [*self.encode(text), self.eos_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`. Control tokens, <unk> and ids beyond the vocabulary (image token, padding rows) give nothing."""
        text: str = self._pieces.decode(self.visible(ids))
        return text

    def texts(self) -> list[str]:
        """What each piece stands for in a text; "" for control pieces, a byte's Latin-1 character for byte pieces."""
        return [self._text(index) for index in range(self.size)]

    def stream(self) -> TextStream:
        """A decoder for ids that arrive one at a time."""
        return TextStream(self)

    def visible(self, ids: Sequence[int]) -> list[int]:
        """Those of `ids` that stand for text."""
        known = [int(i) for i in ids if 0 <= i < self.size]
        return [i for i in known if not self._pieces.is_control(i) and not self._pieces.is_unknown(i)]

    def count_whole(self, ids: Sequence[int]) -> int:
        """How many of `ids`, all visible, come before the bytes of a character that is not whole yet."""
        for count in range(max(len(ids) - 3, 0), len(ids)):
            if all(map(self._pieces.is_byte, ids[count:])) and _begins_character(self._bytes(ids[count:])):
                return count
        return len(ids)

    def _text(self, index: int) -> str:
        if self._pieces.is_control(index) or self._pieces.is_unknown(index):
            return ""
        if self._pieces.is_byte(index):
            return self._bytes([index]).decode("latin-1")
        text: str = self._pieces.id_to_piece(index)
        return text.replace("\u2581", " ")  # SentencePiece's mark for a space

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(int(self._pieces.id_to_piece(i)[3:5], 16) for i in ids)  # "<0x41>"

    def _control(self, name: str, piece: str) -> int:
        index: int = self._pieces.piece_to_id(piece)
        if self._pieces.id_to_piece(index) != piece or not self._pieces.is_control(index):
            raise CheckpointError(f"{name} has no control piece {piece}; it is not a PaliGemma vocabulary")
        return index

    def _newline(self, name: str) -> int:
        ids: list[int] = self._pieces.encode("\n")
        if len(ids) != 1 or self._pieces.id_to_piece(ids[0]) != "\n":
            raise CheckpointError(f"{name} has no single piece for the newline; it is not a PaliGemma vocabulary")
        return ids[0]

    def _run(self, name: str, pieces: tuple[str, ...]) -> int:
        ids: list[int] = self._pieces.encode("".join(pieces))
        if [self._pieces.id_to_piece(i) for i in ids] != list(pieces) or ids != list(range(ids[0], ids[0] + len(pieces))):
            raise CheckpointError(
                f"{name} lacks the tokens {pieces[0]}..{pieces[-1]}; a plain Gemma vocabulary will not do: "
                "copy tokenizer.model from a PaliGemma checkpoint such as google/paligemma-3b-pt-224"
            )
        return ids[0]


def check_vocabulary(tokenizer: PaliGemmaTokenizer, config: PaliGemmaConfig) -> None:
    """Raise CheckpointError where config.json means another vocabulary: one token id that differs spoils every answer."""
    image, rows, size = config.image_token_index, config.text.vocab_size, tokenizer.size
    problem = ""
    if image == tokenizer.first_loc:  # transformers gives these ids to a model that it trains with a plain Gemma vocabulary
        problem = (
            f"image_token_index {image} is its {LOC_TOKENS[0]}; in a plain Gemma vocabulary all loc and seg tokens are one higher"
        )
    elif image < size:
        problem = f"image_token_index {image} is one of its {size} pieces"
    elif rows < size:
        problem = f"vocab_size {rows} is less than its {size} pieces"
    elif image >= rows:
        problem = f"image_token_index {image} is not one of the {rows} rows of vocab_size"
    elif config.eos_token_id != tokenizer.eos_token_id:
        problem = f"eos_token_id {config.eos_token_id} is not its <eos>, {tokenizer.eos_token_id}"
    if problem:
        raise CheckpointError(f"config.json and {tokenizer.name} do not belong together: {problem}; copy both from one checkpoint")


@dataclass
class TextStream:
    """Turns ids into text as they come, and never lets out half a character.

    The text of all pieces so far equals `decode` of all ids so far, once `finish` has been called.
    """

    tokenizer: PaliGemmaTokenizer
    _pending: list[int] = field(default_factory=list)  # the first bytes of a character, three at most

    def add(self, token_id: int) -> str:
        """The new text that is certain after this id, often all of it, sometimes none."""
        self._pending += self.tokenizer.visible([token_id])
        return self._take(self.tokenizer.count_whole(self._pending))

    def finish(self) -> str:
        """What is left, each byte of an unfinished character as U+FFFD."""
        return self._take(len(self._pending))

    def _take(self, count: int) -> str:
        ready, self._pending = self._pending[:count], self._pending[count:]
        return self.tokenizer.decode(ready)


def _begins_character(data: bytes) -> bool:
    """Whether these bytes can become one UTF-8 character, but are none yet."""
    try:
        return codecs.utf_8_decode(data, "strict", False) == ("", 0)
    except UnicodeDecodeError:
        return False
