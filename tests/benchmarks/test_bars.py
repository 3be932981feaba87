"""Which ratios are judged, and how."""

from __future__ import annotations

from benchmarks.bars import IN_PROCESS, PEER, RETINA, Bar, Verdict, graph_verdicts

Figures = dict[str, object]


def row(service: str, scenario: str = "unique", users: int = 16, tiles: int = 1, **figures: object) -> Figures:
    base: Figures = {"tokens_per_s": 100.0, "ttft_p50_ms": 100.0, "ttft_p50_ms_by_turn": (100.0,)}
    return {"service": service, "scenario": scenario, "users": users, "tiles": tiles, **base, **figures}


def only(verdicts: list[Verdict], word: str) -> Verdict:
    (found,) = [verdict for verdict in verdicts if word in verdict.what]
    return found


def test_a_floor_is_held_from_above_and_a_ceiling_from_below() -> None:
    floor, ceiling = Bar("rate", 2, 3), Bar("wait", 2, 1, is_ceiling=True)

    assert [floor.judge(value).word for value in (1.9, 2.0, 3.0)] == ["MISSED", "reached", "beyond"]
    assert [ceiling.judge(value).word for value in (2.1, 2.0, 1.0)] == ["MISSED", "reached", "beyond"]


def test_tokens_and_first_tokens_are_held_against_the_peer_of_the_same_cell() -> None:
    ours = row(RETINA, tokens_per_s=700.0, ttft_p50_ms=600.0)
    theirs = row(f"{PEER} float32", tokens_per_s=70.0, ttft_p50_ms=12000.0)
    elsewhere = row(f"{PEER} float32", users=1, tokens_per_s=1.0)

    verdicts = graph_verdicts([ours, theirs, elsewhere])

    assert only(verdicts, "tokens/s").value == 10.0
    assert only(verdicts, "tokens/s").is_stretched
    assert only(verdicts, "TTFT").value == 20.0
    assert len(verdicts) == 2


def test_cells_without_a_peer_are_not_judged() -> None:
    assert graph_verdicts([row(RETINA), row(RETINA, users=4)]) == []


def test_later_turns_are_held_against_the_second() -> None:
    by_turn = (500.0, 100.0, 90.0, 90.0, 90.0, 90.0, 90.0, 130.0)

    verdict = only(graph_verdicts([row(RETINA, "long", users=4, ttft_p50_ms_by_turn=by_turn)]), "turn 8")

    assert verdict.value == 1.3
    assert verdict.word == "MISSED"


def test_a_new_question_is_held_against_the_first_sight() -> None:
    verdict = only(graph_verdicts([row(RETINA, "repeat", users=1, ttft_p50_ms_by_turn=(400.0, 100.0))]), "first sight")

    assert (verdict.value, verdict.word) == (4.0, "reached")


def test_what_the_graph_costs_is_a_share_of_tokens_and_a_difference_of_waits() -> None:
    served, alone = row(RETINA, tokens_per_s=90.0, ttft_p50_ms=110.0), row(IN_PROCESS)

    verdicts = graph_verdicts([served, alone])

    assert only(verdicts, "tokens/s served").value == 0.9
    assert only(verdicts, "TTFT served").value == 10.0
    assert only(verdicts, "TTFT served").word == "reached"
