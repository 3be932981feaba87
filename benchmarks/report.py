"""What a benchmark says at its end: the machine, a table, bars, one JSON line; and where that is kept."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.bars import Verdict
from benchmarks.card import Card

RESULTS = Path(__file__).parent / "results"
TABLE_WIDTH = 150  # characters; narrower, the figures would be cut off
Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines of `y` over `x`, one for each value of `line`; a panel for each of `panel`. Other rows do not show."""

    x: str
    y: str
    line: str
    panel: str


@dataclass(frozen=True, slots=True)
class Report:
    benchmark: str
    card: Card
    rows: Sequence[Row]
    columns: tuple[str, ...] = ()  # of the table; empty: whatever is one figure or one word
    verdicts: Sequence[Verdict] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    plot: Plot | None = None

    def finish(self, options: argparse.Namespace) -> None:
        """Print everything, and write what --out and --plot name."""
        console = Console(width=max(Console().width, TABLE_WIDTH))
        for line in self.card.lines:
            console.print(line, soft_wrap=True, highlight=False)
        for table in self.tables():
            console.print(table)
        if self.verdicts:
            console.print(_verdict_table(self.verdicts))
        line = self.to_json()
        if options.out is not None:
            place(options.out).write_text(line + "\n", encoding="utf-8")
        print(line)
        if options.plot is not None:  # last: whatever becomes of it, the figures are kept
            write_plot(self, options.plot)

    def tables(self) -> list[Table]:
        """One for each value of the rows' "part", if they have one."""
        return [
            self._table([row for row in self.rows if row.get("part") == part], part)
            for part in _distinct(self.rows, "part")
        ]

    def _table(self, rows: Sequence[Row], part: object) -> Table:
        names = self.columns or tuple(key for key, value in rows[0].items() if _is_plain(value) and key != "part")
        table = Table(
            title=f"{self.benchmark}: {part}" if part else self.benchmark, box=box.SIMPLE_HEAD, pad_edge=False
        )
        for name in names:
            is_text = any(isinstance(row.get(name), str) for row in rows)
            heading = name.replace("_", " ")
            width = max(map(len, heading.split()))  # or rich would cut words off
            table.add_column(heading, justify="left" if is_text else "right", no_wrap=is_text, min_width=width)
        for row in rows:
            table.add_row(*(_show(row.get(name)) for name in names))
        return table

    def to_json(self) -> str:
        """One line, with everything that was measured."""
        content = {
            "benchmark": self.benchmark,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": asdict(self.card),
            "settings": dict(self.settings),
            "rows": [dict(row) for row in self.rows],
            "bars": [asdict(verdict) for verdict in self.verdicts],
        }
        return json.dumps(content, default=_name)


def add_report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the JSON line; a bare name: benchmarks/results/")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="a picture of it (needs matplotlib), kept as --out is"
    )


def place(path: Path) -> Path:
    """A bare name goes to the other results."""
    if path.parent != Path():
        return path
    RESULTS.mkdir(exist_ok=True)
    return RESULTS / path


def write_plot(report: Report, path: Path) -> None:
    """Raises SystemExit where matplotlib is missing, saying what to install."""
    plot = report.plot
    if plot is None:
        raise SystemExit(f"there is no plot of {report.benchmark}")
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("--plot needs matplotlib: pip install 'retina-serve[bench]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in report.rows if plot.x in row and plot.y in row]
    if not shown:
        raise SystemExit(f"nothing that was measured has {plot.x} and {plot.y}: there is nothing to plot")
    panels = _distinct(shown, plot.panel)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        rows = [row for row in shown if row.get(plot.panel) == panel]
        for line in _distinct(rows, plot.line):
            points = [(row[plot.x], row[plot.y]) for row in rows if row.get(plot.line) == line]
            axis.plot(*zip(*points, strict=True), marker="o", label=str(line))
        axis.set(
            title=str(panel),
            xlabel=plot.x.replace("_", " "),
            ylabel=plot.y.replace("_", " "),
            ylim=(0, None),
            xticks=_distinct(rows, plot.x),
        )
        axis.legend()
    figure.tight_layout()
    figure.savefig(place(path))
    pyplot.close(figure)


def _distinct(rows: Sequence[Row], name: str) -> list[object]:
    return list(dict.fromkeys(row.get(name) for row in rows))


def _verdict_table(verdicts: Sequence[Verdict]) -> Table:
    table = Table("what", "measured", "bar", "stretch", "", title="what must be reached", box=box.SIMPLE_HEAD)
    for verdict in verdicts:
        table.add_row(verdict.what, verdict.measured, verdict.bar, verdict.stretch, verdict.word)
    return table


def _name(value: object) -> str:
    """Results are kept: of a path, what says something on other machines."""
    return value.name if isinstance(value, Path) else str(value)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _show(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, tuple | list):
        return ", ".join(_show(item) for item in value)
    return str(value)
