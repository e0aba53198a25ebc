"""What one token stands for by itself, as the log-probabilities of OpenAI's API name it: text, and bytes where it has some.

Source: https://platform.openai.com/docs/api-reference/chat/object, `logprobs.content`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .tokenizer import PaliGemmaTokenizer

SPACE = "\u2581"  # SentencePiece's mark for a space


@dataclass(frozen=True)
class TokenPiece:
    """A token's name, and what it adds to an answer."""

    text: str  # of a byte that is no character by itself: "\\xf0", as OpenAI writes it
    data: bytes | None  # UTF-8; None: it adds nothing, as <eos> does


class TokenPieces:
    """The pieces of a vocabulary by their ids."""

    def __init__(self, tokenizer: PaliGemmaTokenizer):
        self._pieces, self._size = tokenizer.pieces, tokenizer.size

    def __getitem__(self, token_id: int) -> TokenPiece:
        if not 0 <= token_id < self._size:  # the image token, and rows of the output layer that mean nothing
            return TokenPiece(f"<id{token_id}>", None)
        piece: str = self._pieces.id_to_piece(token_id)
        if self._pieces.is_control(token_id) or self._pieces.is_unknown(token_id):
            return TokenPiece(piece, None)
        if self._pieces.is_byte(token_id):
            return _byte(int(piece[3:5], 16))  # "<0x41>"
        text = piece.replace(SPACE, " ")
        return TokenPiece(text, text.encode())


def _byte(value: int) -> TokenPiece:
    return TokenPiece(chr(value) if value < 128 else f"\\x{value:02x}", bytes([value]))
