"""What must be reached: ratios of figures from one run, each with a bar and a further aim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Row = Mapping[str, object]
RETINA, PEER, IN_PROCESS = "retina", "transformers serve", "in process"


@dataclass(frozen=True, slots=True)
class Verdict:
    what: str
    measured: str  # in words
    bar: str
    stretch: str
    value: float  # a ratio, or a difference in the unit that `measured` names
    is_reached: bool
    is_stretched: bool

    @property
    def word(self) -> str:
        if self.is_stretched:
            return "beyond"
        return "reached" if self.is_reached else "MISSED"


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure must be at least `bar`, or where less is better at most."""

    what: str
    bar: float
    stretch: float
    unit: str = "times"
    is_ceiling: bool = False  # at most

    def judge_ratio(self, above: float, below: float) -> Verdict:
        return self.judge(above / below, f" ({_number(above)} / {_number(below)})")

    def judge(self, value: float, made_of: str = "") -> Verdict:
        sign = "at most" if self.is_ceiling else "at least"
        return Verdict(
            self.what,
            f"{value:.3g} {self.unit}{made_of}",
            f"{sign} {self.bar:g}",
            f"{self.stretch:.3g}",
            round(value, 4),
            self._holds(value, self.bar),
            self._holds(value, self.stretch),
        )

    def _holds(self, value: float, limit: float) -> bool:
        return value <= limit if self.is_ceiling else value >= limit


def graph_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Of the cells that were measured on both sides. Stretches name the best figures of other peers as ratios to what
    `transformers serve` gave beside them (673, 144, 648 ms, 205 against 78, 85, 12.1 s, 58)."""
    verdicts = []
    for bar, scenario, tiles, users in (
        (Bar("tokens/s against transformers serve, 16 users, unique pictures", 7, 673 / 78), "unique", 1, 16),
        (Bar("tokens/s against transformers serve, 1 user, unique pictures", 1.3, 144 / 85), "unique", 1, 1),
        (Bar("tokens/s against transformers serve, 16 users, five-tile pictures", 2.5, 205 / 58), "unique", 5, 16),
    ):
        pair = _pair(rows, scenario, tiles, users, "tokens_per_s")
        if pair is not None:
            verdicts.append(bar.judge_ratio(*pair))
    pair = _pair(rows, "unique", 1, 16, "ttft_p50_ms")
    if pair is not None:
        bar = Bar("TTFT of transformers serve over ours, 16 users, unique pictures", 15, 12115 / 648)
        verdicts.append(bar.judge_ratio(pair[1], pair[0]))
    return [*verdicts, *_turn_verdicts(rows), *cost_verdicts(rows)]


def _turn_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """TTFT of later turns of our own."""
    verdicts = []
    for row in rows:
        if row["service"] != RETINA:
            continue
        cell = f"{row['users']} users, {row['tiles']} tiles"
        by_turn: Sequence[float] = row["ttft_p50_ms_by_turn"]  # type: ignore[assignment]
        if row["scenario"] == "long":
            bar = Bar(f"TTFT of turn 8 over turn 2, {cell}", 1.2, 1.0, is_ceiling=True)
            verdicts.append(bar.judge_ratio(by_turn[7], by_turn[1]))
        if row["scenario"] == "repeat":
            bar = Bar(f"TTFT of a picture's first sight over a new question about it, {cell}", 3, 5)
            verdicts.append(bar.judge_ratio(by_turn[0], by_turn[1]))
    return verdicts


def cost_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """What HTTP and Ray cost over the same graph in one process, at 16 users."""
    verdicts = []
    for tiles in (1, 5):
        served, alone = (_find(rows, service, "unique", tiles, 16) for service in (RETINA, IN_PROCESS))
        if served is None or alone is None:
            continue
        rate = Bar(f"tokens/s served over in process, 16 users, {tiles} tiles", 0.85, 0.93)
        verdicts.append(rate.judge_ratio(_figure(served, "tokens_per_s"), _figure(alone, "tokens_per_s")))
        extra_ms = _figure(served, "ttft_p50_ms") - _figure(alone, "ttft_p50_ms")
        wait = Bar(f"TTFT served less in process, 16 users, {tiles} tiles", 15, 8, unit="ms", is_ceiling=True)
        verdicts.append(wait.judge(extra_ms))
    return verdicts


def _pair(rows: Sequence[Row], scenario: str, tiles: int, users: int, name: str) -> tuple[float, float] | None:
    """Ours and theirs; theirs in float32, which is how the figures beside the bars were measured."""
    ours = _find(rows, RETINA, scenario, tiles, users)
    theirs = _find(rows, f"{PEER} float32", scenario, tiles, users)
    if ours is None or theirs is None:
        return None
    return _figure(ours, name), _figure(theirs, name)


def _find(rows: Sequence[Row], service: str, scenario: str, tiles: int, users: int) -> Row | None:
    wanted = (service, scenario, tiles, users)
    return next((r for r in rows if (r["service"], r["scenario"], r["tiles"], r["users"]) == wanted), None)


def _figure(row: Row, name: str) -> float:
    value = row[name]
    assert isinstance(value, int | float), (name, value)
    return float(value)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
