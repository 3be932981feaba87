"""Where in a JSON text one stands: compared with a whole reading of the text by Python's own reader."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.generator.grammar_place import MAX_DEPTH, MAX_WHOLE_DIGITS, Place

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans())
def test_a_whole_document_ends_outside_of_everything(value: object, ascii_only: bool) -> None:
    place = Place().after(json.dumps(value, ensure_ascii=ascii_only).encode())
    assert (place.in_string, place.is_escaped, place.depth) == (False, False, 0)


@given(st.text())
def test_a_string_is_left_where_it_ends_and_nowhere_else(text: str) -> None:
    written = json.dumps(text).encode()
    place = Place()
    for byte in written[:-1]:
        place = place.after(bytes([byte]))
        assert place.in_string
    assert not place.after(written[-1:]).in_string


@pytest.mark.parametrize(
    ("text", "is_sane"),
    [
        (b"[" * MAX_DEPTH, True),
        (b"[" * (MAX_DEPTH + 1), False),
        (b'"' + b"[" * (MAX_DEPTH + 1), True),
        (b"1" * MAX_WHOLE_DIGITS, True),
        (b"-" + b"1" * (MAX_WHOLE_DIGITS + 1), False),
        (b"0.12345678901234", True),
        (b"0.123456789012345", False),
        (b"[1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9,0.5", True),
        (b"1e99", True),
        (b"1E-99", True),
        (b"1e100", False),
        (b'"1e100', True),
        (b"[true,false,null", True),
    ],
)
def test_what_readers_do_not_take_is_seen(text: bytes, is_sane: bool) -> None:
    assert Place().after(text).is_sane is is_sane


@pytest.mark.parametrize(
    ("text", "in_number"), [(b"-", True), (b"1", True), (b"[1,", False), (b'"1', False), (b"", False)]
)
def test_numbers_are_told_from_other_places(text: bytes, in_number: bool) -> None:
    assert Place().after(text).in_number is in_number
