"""What people's words must be before a tokenizer may see them. Pure, no torch."""

from __future__ import annotations

from deployments.errors import InvalidRequest


def check_text(text: str, param: str = "message") -> str:
    """The same text. Raises InvalidRequest for text that no bytes stand for, at which tokenizers raise TypeError.

    JSON can hold half of a surrogate pair (`"\\ud83d"`), where a client cut a text between two halves.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the text has half a surrogate pair (U+{ord(text[error.start]):04X}) at position {error.start}, which is "
            "no character",
            param,
        ) from error
    return text
