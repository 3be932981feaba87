"""Text comes out in whole characters, early, completely, and at constant cost per token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.generator.detokenizer import UNFINISHED, WINDOW_TOKENS, Detokenizer

FAMILY_EMOJI = "👩‍👩‍👧"


class ByteTokens:
    """A byte-level tokenizer: token i is pieces[i], some bytes, which need not end where characters do."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.num_decoded = 0

    def decode(self, token_ids: Sequence[int]) -> str:
        self.num_decoded += len(token_ids)
        return b"".join(self.pieces[token_id] for token_id in token_ids).decode("utf-8", errors="replace")


@st.composite
def cut_bytes(draw: st.DrawFn, content: st.SearchStrategy[bytes]) -> list[bytes]:
    data = draw(content)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=80)))
    return [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]


letters = st.characters(exclude_categories=("Cs",), exclude_characters=UNFINISHED) | st.sampled_from("äß日本語🙂")
texts = st.text(letters, max_size=60).map(str.encode)


@settings(max_examples=300, deadline=None)
@given(cut_bytes(texts))
def test_whole_characters_and_the_whole_text(pieces: list[bytes]) -> None:
    tokens = ByteTokens(pieces)
    detokenizer = Detokenizer(tokens.decode)
    whole = b"".join(pieces).decode()
    shown = ""
    for token_id in range(len(pieces)):
        piece = detokenizer.push(token_id)
        assert UNFINISHED not in piece
        shown += piece
        arrived = b"".join(pieces[: token_id + 1])
        assert shown == arrived.decode("utf-8", errors="ignore"), "what has fully arrived is shown at once"
    assert shown + detokenizer.flush() == whole


@settings(max_examples=300, deadline=None)
@given(cut_bytes(st.binary(max_size=120)))
def test_bytes_that_are_no_text_still_add_up(pieces: list[bytes]) -> None:
    tokens = ByteTokens(pieces)
    detokenizer = Detokenizer(tokens.decode)
    shown = "".join(detokenizer.push(token_id) for token_id in range(len(pieces))) + detokenizer.flush()
    assert shown == b"".join(pieces).decode("utf-8", errors="replace")


def test_one_byte_at_a_time() -> None:
    pieces = [bytes([byte]) for byte in f"a{FAMILY_EMOJI}é".encode()]
    detokenizer = Detokenizer(ByteTokens(pieces).decode)
    shown = [detokenizer.push(token_id) for token_id in range(len(pieces))]
    assert [piece for piece in shown if piece] == ["a", *FAMILY_EMOJI, "é"]
    assert detokenizer.flush() == ""


def test_an_unfinished_end_is_flushed_as_it_is() -> None:
    detokenizer = Detokenizer(ByteTokens([b"ok", b"\xf0\x9f"]).decode)
    assert detokenizer.push(0) + detokenizer.push(1) == "ok"
    assert detokenizer.flush() == UNFINISHED


@pytest.mark.parametrize("parts", [(b"\xe6\x97", b"\xa5"), (b"\xe6", b"\x97", b"\xa5"), (b"\xe6", b"\x97\xa5")])
@pytest.mark.parametrize("gap", range(0, 40, 3))
def test_textless_tokens_inside_a_character_are_no_trouble(parts: tuple[bytes, ...], gap: int) -> None:
    pieces = [piece for part in parts for piece in [*[b""] * gap, part]]
    detokenizer = Detokenizer(ByteTokens(pieces).decode)
    assert "".join(detokenizer.push(token_id) for token_id in range(len(pieces))) == "日"


def test_the_cost_per_token_is_constant() -> None:
    for piece in (b"word ", b"\x80", b""):
        tokens = ByteTokens([piece])
        detokenizer = Detokenizer(tokens.decode)
        for _ in range(2000):
            detokenizer.push(0)
        assert tokens.num_decoded <= 2000 * 2 * (WINDOW_TOKENS + 1)
