"""Text comes out in whole characters, early, completely, and at constant cost per token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.generator.detokenizer import UNFINISHED, WINDOW_TOKENS, Detokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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


# --------------------------------------------------------------------------------- tokenizers as checkpoints have them


class Vocabulary:
    """A real tokenizer, its ids by what makes them special, and answers in which those meet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from deployments.models.chat_template import byte_token_ids

        self.tokenizer = tokenizer
        self.byte_token_ids = byte_token_ids(tokenizer)
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        special = sorted(tokenizer.get_added_tokens_decoder())
        odd = [id for id in range(size) if UNFINISHED in self.decode([id])]
        words = tokenizer.encode("What is  this? 日本 🙂 \n\n a red circle, 42", add_special_tokens=False).ids
        pools = [special, odd, words, sorted(self.byte_token_ids) or odd, range(size)]
        self.answers = st.lists(st.one_of(*map(st.sampled_from, pools)), max_size=60)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def open(self) -> Detokenizer:
        return Detokenizer(self.decode, self.byte_token_ids)


@cache
def vocabulary(name: str) -> Vocabulary:
    import tiny_llava

    return Vocabulary(getattr(tiny_llava, f"{name}_tokenizer")())


@pytest.mark.torch
@pytest.mark.parametrize("name", ["byte_fallback", "byte_level"])
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_pieces_joined_are_the_decoded_whole(name: str, data: st.DataObject) -> None:
    known = vocabulary(name)
    token_ids = data.draw(known.answers)
    whole, shown = known.decode(token_ids), ""
    detokenizer = known.open()
    for token_id in token_ids:
        shown += detokenizer.push(token_id)
        assert whole.startswith(shown)
    assert shown + detokenizer.flush() == whole


@pytest.mark.torch
@pytest.mark.parametrize("name", ["byte_fallback", "byte_level"])
def test_text_is_shown_as_it_comes(name: str) -> None:
    known = vocabulary(name)
    text = "A red circle, isn't it? 日本 and 🙂\n\nEnd " + "word " * 40 + "."
    detokenizer, arrived, late = known.open(), [], 0
    shown = ""
    for token_id in known.tokenizer.encode(text, add_special_tokens=False).ids:
        shown += detokenizer.push(token_id)
        arrived.append(token_id)
        late = 0 if shown == known.decode(arrived) else late + 1
        assert late <= len("日本".encode()) + 1, "no more is held back than the bytes that stand together"
    assert shown + detokenizer.flush() == text


@pytest.mark.torch
def test_a_wrong_byte_changes_all_bytes_beside_it() -> None:
    """The case in which others raise, or show what the decoded whole has not."""
    from tokenizers.decoders import DecodeStream

    known = vocabulary("byte_fallback")
    good = [known.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "日".encode()]
    word = known.tokenizer.encode("red", add_special_tokens=False).ids
    token_ids = [*word, *good, good[0], *word]
    assert known.decode(token_ids) == f"red{UNFINISHED * 4} red"
    detokenizer = known.open()
    assert "".join(map(detokenizer.push, token_ids)) + detokenizer.flush() == f"red{UNFINISHED * 4} red"
    stream = DecodeStream(skip_special_tokens=True)
    with pytest.raises(Exception, match="Invalid prefix"):  # the day it does not, it can take this class's place
        "".join(stream.step(known.tokenizer, token_id) or "" for token_id in token_ids)


@pytest.mark.torch
def test_a_run_of_bytes_costs_nothing_until_it_ends() -> None:
    known = vocabulary("byte_fallback")
    num_decoded = 0

    def decode(token_ids: Sequence[int]) -> str:
        nonlocal num_decoded
        num_decoded += len(token_ids)
        return known.decode(token_ids)

    detokenizer = Detokenizer(decode, known.byte_token_ids)
    newline = known.tokenizer.token_to_id("<0x0A>")
    assert {detokenizer.push(newline) for _ in range(2000)} == {""}
    assert num_decoded <= 2000 * 2
    assert detokenizer.flush() == "\n" * 2000
