"""What a benchmark prints and keeps."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks import report as report_file
from benchmarks.bars import Bar
from benchmarks.card import Card, machine_card
from benchmarks.report import Plot, Report, add_report_options, place

CARD = Card("CPU", 2, ("avx2",), 24.0, None, "3.11.7", {"torch": "2.13.0"}, "abc1234", 0.1)
ROWS = [
    {"part": "a", "who": "ours", "batch": 1, "rate": 10.0, "by_turn": (1.0, 2.0)},
    {"part": "a", "who": "ours", "batch": 2, "rate": 15.0, "by_turn": (1.0, 2.0)},
    {"part": "b", "who": "theirs", "batch": 1, "rate": None, "note": "slow"},
]


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_report_options(parser)
    return parser.parse_args(words)


def test_the_last_line_is_json_with_everything(capsys: pytest.CaptureFixture[str]) -> None:
    verdict = Bar("rate", 2, 3).judge_ratio(10.0, 4.0)

    Report("bench", CARD, ROWS, verdicts=[verdict], settings={"seed": "x"}).finish(options())

    printed = capsys.readouterr().out
    content = json.loads(printed.splitlines()[-1])
    assert content["benchmark"] == "bench"
    assert content["machine"]["cpu"] == "CPU"
    assert content["rows"][0] == {**ROWS[0], "by_turn": [1.0, 2.0]}
    assert content["bars"][0]["value"] == 2.5
    assert content["settings"] == {"seed": "x"}
    assert "bench: a" in printed
    assert "bench: b" in printed
    assert "2.5 times (10 / 4)" in printed


def test_results_are_kept_as_the_same_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Report("bench", CARD, ROWS).finish(options("--out", str(tmp_path / "kept.json")))

    assert (tmp_path / "kept.json").read_text() == capsys.readouterr().out.splitlines()[-1] + "\n"


def test_results_name_no_folders_of_this_machine() -> None:
    assert json.loads(Report("b", CARD, ROWS, settings={"out": Path("/home/me/x.json")}).to_json())["settings"] == {
        "out": "x.json"
    }


def test_a_bare_name_goes_to_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_file, "RESULTS", tmp_path / "results")

    assert place(Path("x.json")) == tmp_path / "results" / "x.json"
    assert place(tmp_path / "x.json") == tmp_path / "x.json"


def test_a_plot_has_a_panel_for_each_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra bench")
    plot = Plot(x="batch", y="rate", line="who", panel="part")

    Report("bench", CARD, ROWS[:2], plot=plot).finish(options("--plot", str(tmp_path / "plot.png")))

    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_rows_without_the_figure_are_not_plotted(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra bench")
    rows: list[dict[str, object]] = [*ROWS[:2], {"part": "memory", "who": "ours", "mb": 400}]
    plot = Plot(x="batch", y="rate", line="who", panel="part")

    report_file.write_plot(Report("bench", CARD, rows, plot=plot), tmp_path / "plot.png")
    with pytest.raises(SystemExit, match="nothing to plot"):
        report_file.write_plot(Report("bench", CARD, rows[2:], plot=plot), tmp_path / "none.png")

    assert (tmp_path / "plot.png").exists()
    assert not (tmp_path / "none.png").exists()


def test_without_matplotlib_a_plot_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plot = Plot(x="batch", y="rate", line="who", panel="part")

    with pytest.raises(SystemExit, match=r"retina-serve\[bench\]"):
        report_file.write_plot(Report("bench", CARD, ROWS, plot=plot), tmp_path / "plot.png")


def test_the_card_describes_this_machine() -> None:
    card = machine_card()

    assert card.num_cores >= 1
    assert card.memory_gb > 0
    assert card.python == ".".join(map(str, sys.version_info[:3]))
    assert any(card.cpu in line for line in card.lines)


def test_a_busy_machine_is_told() -> None:
    busy = Card("CPU", 2, (), 24.0, None, "3.11.7", {}, "", 1.7)

    assert "load average 1.7" in busy.lines[-1]
    assert not any("load average" in line for line in CARD.lines)
