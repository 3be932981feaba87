"""Says how each family's chat template writes a conversation, piece by piece, and where its tokens stand."""

from __future__ import annotations

from dataclasses import dataclass

from model import AROUND_IMAGE, END, EXPANDED_IMAGE, PAD, START

Position = tuple[int, int, int]  # by time, line and column


@dataclass(frozen=True, slots=True)
class Dialect:
    """The texts around what is said, so that start + turns equals what the chat template renders."""

    start: str  # before the first turn
    user: str  # before a text without a picture
    user_with_picture: str  # before a text with one, the picture's placeholders included
    image: str  # one placeholder
    before_answer: str
    answer: str  # with {answer}; learned to its last token
    between: str  # after an answer, before the next turn
    pad: str

    def before_text(self, picture: int | None) -> str:
        """What stands before the user's text."""
        return self.user if picture is None else self.user_with_picture

    def positions(self, ids: list[int], picture: int | None) -> tuple[list[Position], int]:
        """Where a piece's tokens stand, counted from its first, and where the token after it will."""
        return [(index, index, index) for index in range(len(ids))], len(ids)


SMOLVLM = Dialect(
    start=START,
    user="User: ",
    user_with_picture=f"User:{EXPANDED_IMAGE}",
    image=AROUND_IMAGE,
    before_answer=f"{END}\nAssistant:",
    answer=f" {{answer}}{END}",
    between="\n",
    pad=PAD,
)
