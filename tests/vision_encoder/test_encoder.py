"""The answer to an encode request: computed once for everybody, then from memory or disk; shared towers; figures."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from vision_encoder.bench import OpenBench, loaded, png, until_true

from deployments.errors import UnknownModel

# ------------------------------------------------------------------------------------- once for everybody


async def test_features_are_what_the_tower_gives(open_bench: OpenBench) -> None:
    bench = open_bench()
    features = await bench.encoder.encode(await bench.add(png(100, (4, 3))))
    assert features.array.tolist() == [[100, 1, 2]] * 3
    assert (features.dtype, features.source) == ("float32", "tower")
    assert features.encode_ms > 0
    assert not features.array.flags.writeable


async def test_twenty_at_once_are_one_run(open_bench: OpenBench) -> None:
    bench = open_bench()
    request = await bench.add(png(1))
    answers = await asyncio.gather(*(bench.encoder.encode(request) for _ in range(20)))
    assert {answer.source for answer in answers} == {"tower"}
    assert all(np.array_equal(answer.array, answers[0].array) for answer in answers)
    assert bench.preprocess.num_calls == 1
    assert bench.tower.batches == [1]
    assert bench.count("tower_images") == 1
    assert (bench.count("requests.tower"), bench.count("requests.shared")) == (1, 19)


async def test_the_second_time_comes_from_memory(open_bench: OpenBench) -> None:
    bench = open_bench()
    request = await bench.add(png(1))
    first = await bench.encoder.encode(request)
    again = await bench.encoder.encode(request)
    assert again.source == "memory"
    assert np.array_equal(again.array, first.array)
    assert bench.tower.batches == [1]


async def test_nothing_is_computed_again_after_a_restart(open_bench: OpenBench) -> None:
    bench = open_bench()
    request = await bench.add(png(1))
    first = await bench.encoder.encode(request)
    await bench.encoder.close()

    restarted = open_bench(images=bench.images)
    answers = await asyncio.gather(*(restarted.encoder.encode(request) for _ in range(20)))
    assert {answer.source for answer in answers} == {"disk"}
    assert np.array_equal(answers[7].array, first.array)
    assert (await restarted.encoder.encode(request)).source == "memory"
    assert restarted.tower.batches == []
    assert restarted.count("tower_images") == 0


async def test_a_disk_level_of_0_bytes_is_off(open_bench: OpenBench, tmp_path: Path) -> None:
    bench = open_bench(disk_cache_bytes=0)
    request = await bench.add(png(1))
    await bench.encoder.encode(request)
    await bench.encoder.close()
    assert (await open_bench(images=bench.images, disk_cache_bytes=0).encoder.encode(request)).source == "tower"
    assert not (tmp_path / "features").exists()


async def test_a_memory_level_of_0_bytes_is_off(open_bench: OpenBench) -> None:
    bench = open_bench(memory_cache_bytes=0)
    request = await bench.add(png(1))
    await bench.encoder.encode(request)
    await until_true(lambda: bench.encoder._cache._num_pending_writes == 0)
    assert (await bench.encoder.encode(request)).source == "disk"


async def test_a_damaged_disk_entry_is_computed_again(open_bench: OpenBench, tmp_path: Path) -> None:
    bench = open_bench()
    request = await bench.add(png(1))
    await bench.encoder.encode(request)
    await bench.encoder.close()
    connection = sqlite3.connect(tmp_path / "features" / "cache.db")
    ((stored,),) = connection.execute("SELECT value FROM Cache").fetchall()
    connection.execute("UPDATE Cache SET value = ?", (stored[:-1] + b"!",))
    connection.commit()
    connection.close()

    restarted = open_bench(images=bench.images)
    assert (await restarted.encoder.encode(request)).source == "tower"
    assert restarted.count("cache_corrupt") == 1
    await restarted.encoder.close()
    assert (await open_bench(images=bench.images).encoder.encode(request)).source == "disk"


async def test_equal_pixels_in_another_shape_are_another_picture(open_bench: OpenBench) -> None:
    bench = open_bench()
    wide, tall = await bench.add(png(1, (6, 2))), await bench.add(png(1, (2, 6)))
    assert wide.image.id != tall.image.id
    assert (await bench.encoder.encode(wide)).array.shape == (2, 3)
    assert (await bench.encoder.encode(tall)).array.shape == (6, 3)


async def test_unknown_models(open_bench: OpenBench) -> None:
    bench = open_bench()
    with pytest.raises(UnknownModel, match="there is a"):
        await bench.encoder.encode(await bench.add(png(1), model="nobody"))


# ------------------------------------------------------------------------------------- sharing towers


async def test_equal_fingerprints_share_tower_and_features(open_bench: OpenBench) -> None:
    towers = {"a": loaded(), "b": loaded()}
    bench = open_bench(towers)
    assert (await bench.encoder.encode(await bench.add(png(1), model="a"))).source == "tower"
    assert (await bench.encoder.encode(await bench.add(png(1), model="b"))).source == "memory"
    assert towers["b"].tower.batches == []
    (tower,) = (await bench.encoder.statistics())["towers"]
    assert tower["models"] == ["a", "b"]


@pytest.mark.parametrize("other", [{"preprocessing": "q"}, {"tower": "u"}, {"dtype": "float16"}], ids=str)
async def test_any_difference_keeps_models_apart(open_bench: OpenBench, other: dict[str, str]) -> None:
    bench = open_bench({"a": loaded(), "b": loaded(offset=100.0, **other)})
    first = await bench.encoder.encode(await bench.add(png(1), model="a"))
    second = await bench.encoder.encode(await bench.add(png(1), model="b"))
    assert second.source == "tower"
    assert (first.array[0, 0], second.array[0, 0]) == (1, 101)
    assert [tower["models"] for tower in (await bench.encoder.statistics())["towers"]] == [["a"], ["b"]]


async def test_the_log_says_who_shares(open_bench: OpenBench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    open_bench({"a": loaded(), "b": loaded(tower="u"), "c": loaded()})
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("towers")]
    assert lines == [
        "model a: tower t, preprocessing p, width 3, float32 on cpu, shared with c",
        "model b: tower u, preprocessing p, width 3, float32 on cpu, not shared",
        "model c: tower t, preprocessing p, width 3, float32 on cpu, shared with a",
    ]


async def test_each_tower_has_one_thread(open_bench: OpenBench) -> None:
    bench = open_bench(preprocess_threads=3)
    requests = [await bench.add(png(red)) for red in range(30)]
    await asyncio.gather(*(bench.encoder.encode(request) for request in requests))
    assert bench.tower.threads == {"tower"}
    assert sum(bench.tower.batches) == 30


# ------------------------------------------------------------------------------------- figures


async def test_statistics_can_be_read_at_three_in_the_morning(open_bench: OpenBench) -> None:
    bench = open_bench(memory_cache_bytes=1000, disk_cache_bytes=100_000)
    requests = [await bench.add(png(red)) for red in (1, 2)]
    for request in (*requests, requests[0]):
        await bench.encoder.encode(request)
    await until_true(lambda: bench.encoder._cache._num_pending_writes == 0)
    statistics = json.loads(json.dumps(await bench.encoder.statistics()))
    assert statistics["closing"] is None
    (tower,) = statistics["towers"]
    assert {key: tower[key] for key in ("models", "tower", "preprocessing", "width", "dtype", "device", "fault")} == {
        "models": ["a"],
        "tower": "tower",
        "preprocessing": "preprocessing",
        "width": 3,
        "dtype": "float32",
        "device": "cpu",
        "fault": "",
    }
    cache = statistics["cache"]
    assert cache["memory"] == {"entries": 2, "bytes": 72, "limit_bytes": 1000, "hits": 1}
    assert cache["disk"]["entries"] == 2
    assert (cache["disk"]["limit_bytes"], cache["disk"]["hits"], cache["misses"]) == (100_000, 0, 2)
    assert (statistics["waiting"], statistics["in_flight"], statistics["max_waiting"]) == (0, 0, 256)
    assert statistics["metrics"] == {
        "vision_encoder_requests.memory": 1,
        "vision_encoder_requests.tower": 2,
        "vision_encoder_tower_batches": 2,
        "vision_encoder_tower_images": 2,
        "vision_encoder_tower_patches": 6,
    }
