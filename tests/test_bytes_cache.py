"""The bytes cache: nothing is unpickled, nothing damaged is believed, the limit is exact, processes share it."""

from __future__ import annotations

import io
import os
import pickle  # noqa: TID251 - to show that nothing loads what it makes
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from diskcache.core import MODE_BINARY, MODE_PICKLE, MODE_RAW, MODE_TEXT

from deployments.bytes_cache import FILE_FROM, BytesCache, Eviction, open_bytes_cache

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(folder: Path) -> Iterator[BytesCache]:
    cache = open_bytes_cache(folder)
    yield cache
    cache.close()


def value_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.val"))


def change_row(folder: Path, of_key: str, **columns: object) -> None:
    """Edit a row as somebody with write access to the database would."""
    connection = sqlite3.connect(folder / "cache.db")
    assignments = ", ".join(f"{name} = ?" for name in columns)
    changed = connection.execute(f"UPDATE Cache SET {assignments} WHERE key = ?", (*columns.values(), of_key)).rowcount
    connection.commit()
    connection.close()
    assert changed == 1


@pytest.fixture
def bomb(tmp_path: Path) -> tuple[bytes, Path]:
    """A pickle that makes a file when somebody loads it, and that file."""
    mark = tmp_path / "unpickled"
    return pickle.dumps(_Touch(str(mark))), mark


class _Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.open, (self.path, os.O_CREAT | os.O_WRONLY))


def test_the_bomb_works(bomb: tuple[bytes, Path]) -> None:
    payload, mark = bomb
    os.close(pickle.load(io.BytesIO(payload)))
    assert mark.exists()


@pytest.mark.parametrize("size", [0, 1, FILE_FROM - 17, FILE_FROM, 1_000_000])
def test_values_come_back(cache: BytesCache, size: int) -> None:
    value = os.urandom(size)
    cache.put("key", value)
    assert cache.get("key") == value
    assert cache.get("other") is None


@pytest.mark.parametrize("size", [0, 5, 1000, FILE_FROM, 1_000_000])
def test_the_start_of_a_value(cache: BytesCache, size: int) -> None:
    value = os.urandom(size)
    cache.put("key", value)
    assert cache.start_of("key", 100) == value[:100]
    assert cache.start_of("other", 100) is None


def test_the_start_of_what_cannot_be_trusted(folder: Path, cache: BytesCache, bomb: tuple[bytes, Path]) -> None:
    payload, mark = bomb
    cache.put("key", b"value")
    change_row(folder, "key", mode=MODE_PICKLE, value=payload, filename=None)
    assert cache.start_of("key", 100) is None
    assert not mark.exists()
    assert cache.num_corrupt == 1


def test_put_replaces_and_delete_forgets(cache: BytesCache) -> None:
    cache.put("key", b"first")
    cache.put("key", b"second")
    assert cache.get("key") == b"second"
    assert cache.delete("key")
    assert not cache.delete("key")
    assert cache.get("key") is None
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_survives_reopening(folder: Path, cache: BytesCache) -> None:
    cache.put("key", b"value")
    cache.close()
    assert open_bytes_cache(folder).get("key") == b"value"


def test_keys_by_prefix(cache: BytesCache) -> None:
    for key in ("a/1", "a/2", "b/1"):
        cache.put(key, b"")
    assert cache.keys("a/") == ["a/1", "a/2"]
    assert cache.keys() == ["a/1", "a/2", "b/1"]


def test_only_bytes_under_strings(cache: BytesCache) -> None:
    with pytest.raises(TypeError, match="keys are str"):
        cache._cache.set(("tuple",), b"x")
    with pytest.raises(TypeError, match="values are bytes"):
        cache._cache.set("key", {"a": 1})


@pytest.mark.parametrize("parents", ["", "deep/er/"])
def test_folder_is_closed_to_others(tmp_path: Path, parents: str) -> None:
    folder = tmp_path / parents / "cache"
    open_bytes_cache(folder).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_folders_on_the_way_are_closed_when_they_are_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    open_bytes_cache(tmp_path / "data" / "cache").close()
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_an_open_folder_is_closed(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    open_bytes_cache(folder).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


# ------------------------------------------------------------------------------------- hostile and damaged rows


def test_a_pickle_row_is_never_unpickled(folder: Path, cache: BytesCache, bomb: tuple[bytes, Path]) -> None:
    payload, mark = bomb
    cache.put("key", b"value")
    change_row(folder, "key", mode=MODE_PICKLE, value=payload, filename=None)
    assert cache.get("key") is None
    assert not mark.exists()
    assert cache.num_corrupt == 1
    assert cache.keys() == []


def test_a_pickle_file_is_never_unpickled(folder: Path, cache: BytesCache, bomb: tuple[bytes, Path]) -> None:
    payload, mark = bomb
    cache.put("key", bytes(FILE_FROM))
    (file,) = value_files(folder)
    file.write_bytes(payload)
    change_row(folder, "key", mode=MODE_PICKLE)
    assert cache.get("key") is None
    assert not mark.exists()


def test_a_pickled_key_is_never_unpickled(folder: Path, cache: BytesCache, bomb: tuple[bytes, Path]) -> None:
    payload, mark = bomb
    cache.put("bad", b"value")
    cache.put("good", b"value")
    change_row(folder, "bad", key=payload, raw=0)
    assert cache.keys() == ["good"]
    assert not mark.exists()


@pytest.mark.parametrize("mode", [MODE_TEXT, MODE_PICKLE, 99])
def test_other_storage_modes_are_dropped(folder: Path, cache: BytesCache, mode: int) -> None:
    cache.put("key", bytes(FILE_FROM))
    change_row(folder, "key", mode=mode)
    assert cache.get("key") is None
    assert cache.num_corrupt == 1


@pytest.mark.parametrize("value", ["text", 7, 1.5])
def test_values_that_are_not_bytes_are_dropped(folder: Path, cache: BytesCache, value: object) -> None:
    cache.put("key", b"value")
    change_row(folder, "key", mode=MODE_RAW, value=value)
    assert cache.get("key") is None
    assert cache.num_corrupt == 1


@pytest.mark.parametrize("escape", ["../victim", "{absolute}", "ab/cd/../../../victim", None])
def test_rows_that_point_out_of_the_folder(folder: Path, tmp_path: Path, cache: BytesCache, escape: str | None) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    cache.put("key", bytes(FILE_FROM))
    change_row(folder, "key", mode=MODE_BINARY, filename=escape and escape.format(absolute=victim))
    assert cache.get("key") is None
    assert victim.read_bytes() == b"precious"


def test_a_flipped_byte_in_a_file(folder: Path, cache: BytesCache) -> None:
    cache.put("key", os.urandom(2 * FILE_FROM))
    (file,) = value_files(folder)
    damaged = bytearray(file.read_bytes())
    damaged[FILE_FROM] ^= 1
    file.write_bytes(damaged)
    assert cache.get("key") is None
    assert cache.num_corrupt == 1
    assert value_files(folder) == []


def test_a_flipped_byte_in_a_row(folder: Path, cache: BytesCache) -> None:
    cache.put("key", b"value")
    stored = sqlite3.connect(folder / "cache.db").execute("SELECT value FROM Cache").fetchone()[0]
    change_row(folder, "key", value=stored[:-1] + b"!")
    assert cache.get("key") is None
    assert cache.num_corrupt == 1


@pytest.mark.parametrize("left", [0, 8, 1000])
def test_a_truncated_file(folder: Path, cache: BytesCache, left: int) -> None:
    cache.put("key", os.urandom(2 * FILE_FROM))
    (file,) = value_files(folder)
    os.truncate(file, left)
    assert cache.get("key") is None
    assert cache.num_corrupt == 1


def test_a_missing_file_is_dropped(folder: Path, cache: BytesCache) -> None:
    cache.put("key", bytes(FILE_FROM))
    value_files(folder)[0].unlink()
    assert cache.get("key") is None
    assert cache.keys() == []


@pytest.mark.parametrize("eviction", ["none", "least-recently-used"])
def test_a_file_that_cannot_be_opened_is_an_oserror(folder: Path, eviction: Eviction) -> None:
    """And not a missing value, which diskcache makes of it."""
    cache = open_bytes_cache(folder, eviction=eviction)
    cache.put("key", bytes(FILE_FROM))
    (file,) = value_files(folder)
    file.unlink()
    file.mkdir()
    with pytest.raises(OSError, match="cannot be read: IsADirectoryError"):
        cache.get("key")
    assert cache.keys() == ["key"]


def test_a_value_moved_to_another_key(folder: Path, cache: BytesCache) -> None:
    cache.put("mine", b"value")
    change_row(folder, "mine", key="hers")
    assert cache.get("hers") is None
    assert cache.num_corrupt == 1


def test_drops_are_reported(folder: Path) -> None:
    reported: list[str] = []
    cache = open_bytes_cache(folder, on_corrupt=reported.append)
    cache.put("key", b"value")
    change_row(folder, "key", value=b"something else")
    cache.get("key")
    cache.get("key")
    assert reported == ["key"]


def test_a_damaged_database_is_an_oserror(folder: Path) -> None:
    folder.mkdir()
    (folder / "cache.db").write_bytes(b"this is no database " * 100)
    with pytest.raises(OSError, match="database"):
        open_bytes_cache(folder)


# ------------------------------------------------------------------------------------- limit and eviction


@pytest.mark.parametrize("size", [10_000, 100_000], ids=["in rows", "in files"])
def test_the_limit_holds_and_the_least_recently_used_go(folder: Path, size: int) -> None:
    entry = size + 16  # with its checksum
    cache = open_bytes_cache(folder, max_bytes=3 * entry, eviction="least-recently-used")
    for key in "abc":
        cache.put(key, os.urandom(size))
    assert cache.get("a") is not None
    cache.put("d", os.urandom(size))
    assert sorted(cache.keys()) == ["a", "c", "d"]
    assert cache.num_bytes == 3 * entry


def test_a_large_value_pushes_out_as_many_as_needed(folder: Path) -> None:
    cache = open_bytes_cache(folder, max_bytes=1000, eviction="least-recently-used")
    for number in range(20):
        cache.put(str(number), bytes(20))
    cache.put("large", bytes(900))
    assert cache.num_bytes <= 1000
    assert {"large", "19"} <= set(cache.keys())


def test_the_newest_stays_even_over_the_limit(folder: Path) -> None:
    cache = open_bytes_cache(folder, max_bytes=10, eviction="least-recently-used")
    cache.put("old", b"x" * 100)
    cache.put("new", b"y" * 100)
    assert cache.keys() == ["new"]


def test_nothing_goes_without_eviction(folder: Path) -> None:
    cache = open_bytes_cache(folder, max_bytes=10)
    for number in range(30):
        cache.put(str(number), bytes(100))
    assert len(cache) == 30


# ------------------------------------------------------------------------------------- threads and processes


def test_readers_never_miss_a_value_that_is_being_replaced(folder: Path, cache: BytesCache) -> None:
    """Values in files of their own: a replaced file goes away between a reader's look at the row and at the file."""
    cache.put("key", bytes(FILE_FROM))
    done = threading.Event()

    def replace() -> None:
        writer = open_bytes_cache(folder)
        for _ in range(150):
            writer.put("key", os.urandom(FILE_FROM))
        done.set()

    thread = threading.Thread(target=replace)
    thread.start()
    misses = 0
    while not done.is_set():
        misses += cache.get("key") is None
    thread.join()
    assert (misses, cache.num_corrupt) == (0, 0)


WRITE_AND_READ = """
import sys
from pathlib import Path
from deployments.bytes_cache import open_bytes_cache
cache = open_bytes_cache(Path(sys.argv[1]))
for number in range(30):
    for size in (100, 100_000):
        key = f"{sys.argv[2]}/{number}/{size}"
        cache.put(key, key.encode() * size)
        cache.put("same", bytes([number]) * size)
        assert cache.get(key) == key.encode() * size
        assert cache.get("same") is not None
assert cache.num_corrupt == 0
"""


def test_two_processes_share_a_folder(folder: Path, cache: BytesCache) -> None:
    command = [sys.executable, "-c", WRITE_AND_READ, str(folder)]
    processes = [subprocess.Popen([*command, name], cwd=ROOT) for name in ("a", "b")]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert len(cache) == 121
    assert all(cache.get(key) is not None for key in cache.keys("a/") + cache.keys("b/"))
    assert cache.num_bytes == sum(len(cache.get(key) or b"") + 16 for key in cache.keys(""))
