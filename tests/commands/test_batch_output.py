"""The file of a batch: what is there already, half lines, failures, foreign files, and two runs at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.commands.batch_output import ItemError, ItemLine, open_output
from deployments.errors import InvalidRequest


def line(item_id: str, *, fails: bool = False) -> ItemLine:
    error = ItemError(code="overloaded", message="too much") if fails else None
    reply: dict[str, object] | None = None if fails else {"caption": "Ein Kreis\u2028 \r"}
    return ItemLine(id=item_id, fingerprint="f", task="caption", image="a.png", reply=reply, error=error)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "made" / "out.jsonl"
    output = open_output(path, retry_failed=False)
    for one in (line("1"), line("2", fails=True), line("3")):
        output.write(one)
    output.close()
    return path


def reopen(path: Path, *, retry_failed: bool = False) -> tuple[set[str], set[str]]:
    output = open_output(path, retry_failed=retry_failed)
    output.close()
    return {key[0] for key in output.done}, {key[0] for key in output.failed}


def test_what_was_written_is_known(path: Path) -> None:
    before = path.read_bytes()
    assert reopen(path) == ({"1", "3"}, {"2"})
    assert path.read_bytes() == before
    assert before.count(b"\n") == 3


@pytest.mark.parametrize("num_bytes", [1, 4, 6, 7, 40, -1])
def test_half_of_a_last_line_is_cut_off(path: Path, num_bytes: int) -> None:
    before = path.read_bytes()
    path.write_bytes(before + line("4").to_json()[:num_bytes])
    assert reopen(path) == ({"1", "3"}, {"2"})
    assert path.read_bytes() == before


def test_failures_are_taken_out_to_be_asked_again(path: Path) -> None:
    assert reopen(path, retry_failed=True) == ({"1", "3"}, set())
    assert path.read_bytes() == line("1").to_json() + line("3").to_json()
    assert [other.name for other in path.parent.iterdir()] == ["out.jsonl"]


def test_a_file_that_was_rewritten_is_gone_on_with_at_its_end(path: Path) -> None:
    output = open_output(path, retry_failed=True)
    output.write(line("2"))
    with pytest.raises(InvalidRequest, match="another batch"):
        open_output(path, retry_failed=False)
    output.close()
    assert reopen(path) == ({"1", "2", "3"}, set())


@pytest.mark.parametrize("text", ["hello", "hello\n", '{"image": "a.png"}\n', '{"id": "1"}\n', "\n"])
def test_a_file_that_no_batch_wrote_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match="line 1 was not written by retina batch"):
        open_output(path, retry_failed=True)
    assert path.read_text() == text


def test_one_run_at_a_time(path: Path) -> None:
    first = open_output(path, retry_failed=False)
    with pytest.raises(InvalidRequest, match="another batch"):
        open_output(path, retry_failed=False)
    first.close()
    reopen(path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="directory"):
        open_output(tmp_path, retry_failed=False)
