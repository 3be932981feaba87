"""Fields of OpenAI's requests that would change nothing here: their harmless values are taken, others refused."""

from __future__ import annotations

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError


def refusing(words: str, *harmless: object) -> BeforeValidator:
    """For a field that may be null or one of `harmless`, compared with its type. `words` say what is missing here."""

    def check(given: object) -> object:
        if given is None or any(type(given) is type(each) and given == each for each in harmless):
            return given
        raise PydanticCustomError("unsupported_parameter", "{words}", {"words": words})

    return BeforeValidator(check)
