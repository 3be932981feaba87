"""Server-sent events in whatever pieces a socket hands them over."""

from __future__ import annotations

import pytest

from benchmarks.events import Block, Event, parse_events

STREAM = 'event: chunk\ndata: {"text":"rød"}\n\n: comment\n\ndata: one\ndata: two\n\n'.encode()
EXPECTED = [("chunk", '{"text":"rød"}'), ("", "one\ntwo")]


def parse(*blocks: bytes) -> list[Event]:
    return list(parse_events(Block(float(number), data) for number, data in enumerate(blocks)))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_do_not_depend_on_how_they_were_cut(size: int) -> None:
    blocks = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]

    assert [(event.name, event.data) for event in parse(*blocks)] == EXPECTED


def test_an_event_has_the_time_of_the_block_that_completed_it() -> None:
    events = parse(b"data: a\n", b"\ndata: b\n\nda", b"ta: c\n\n")

    assert [event.time_s for event in events] == [1.0, 1.0, 2.0]


def test_lines_may_end_with_carriage_returns() -> None:
    assert [(e.name, e.data) for e in parse(b"event: x\r\ndata: y\r\n\r\n")] == [("x", "y")]


def test_what_was_broken_off_is_no_event() -> None:
    assert parse(b"data: whole\n\ndata: half\n") == [Event(0.0, "", "whole")]


def test_a_name_belongs_to_one_event() -> None:
    assert [event.name for event in parse(b"event: a\ndata: 1\n\ndata: 2\n\n")] == ["a", ""]
