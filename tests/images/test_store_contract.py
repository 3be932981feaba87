"""One contract for all image stores, then what only the disk store promises."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployments.config import ImageConfig
from deployments.errors import ImageNotFound
from deployments.images.stores.disk import DiskImageStore, from_record, to_record
from deployments.images.stores.memory import MemoryImageStore
from deployments.images.stores.open import open_image_store
from deployments.types import ImageRef, StoredImage

ROOT = Path(__file__).parent.parent.parent
Store = DiskImageStore | MemoryImageStore
OpenStore = Callable[..., Store]


def image(name: str, data: bytes = b"data\nwith lines\n") -> StoredImage:
    return StoredImage(ImageRef(id=name, width=3, height=2, num_bytes=len(data), media_type="image/png"), data)


@pytest.fixture(params=["disk", "memory"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    opened: list[Store] = []

    def open_one(store_max_bytes: int = 10_000_000) -> Store:
        config = ImageConfig(store=request.param, store_max_bytes=store_max_bytes)
        opened.append(open_image_store(config, tmp_path))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


def files_in(folder: Path, pattern: str = "*") -> list[Path]:
    return list(folder.rglob(pattern))


def flip_last_byte(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


async def ids_in(store: Store, *names: str) -> set[str]:
    found = set()
    for name in names:
        try:
            found.add((await store.get("t", name)).ref.id)
        except ImageNotFound:
            continue
    return found


async def test_what_is_put_comes_back(open_store: OpenStore) -> None:
    store = open_store()
    await store.put("t", image("a"))
    assert await store.get("t", "a") == image("a")


async def test_large_pictures(open_store: OpenStore) -> None:
    store = open_store()
    await store.put("t", image("a", bytes(range(256)) * 10_000))
    assert (await store.get("t", "a")).data == bytes(range(256)) * 10_000


async def test_putting_twice_keeps_one(open_store: OpenStore) -> None:
    store = open_store()
    await store.put("t", image("a"))
    await store.put("t", image("a"))
    await store.delete("t", "a")
    with pytest.raises(ImageNotFound):
        await store.get("t", "a")


async def test_unknown_ids(open_store: OpenStore) -> None:
    store = open_store()
    for id in ("", "a" * 64, "../../etc/passwd", "a/b", "\0", "x" * 10_000, "\ud800"):
        with pytest.raises(ImageNotFound) as caught:
            await store.get("t", id)
        assert caught.value.status == 404
        assert len(caught.value.message) < 1000
        with pytest.raises(ImageNotFound):
            await store.delete("t", id)


async def test_tenants_do_not_see_each_other(open_store: OpenStore) -> None:
    store = open_store()
    await store.put("one", image("a"))
    for call in (store.get, store.delete):
        with pytest.raises(ImageNotFound):
            await call("other", "a")
    assert await store.get("one", "a") == image("a")


async def test_names_cannot_be_read_as_other_names(open_store: OpenStore) -> None:
    store = open_store()
    await store.put("a/b", image("c"))
    with pytest.raises(ImageNotFound):
        await store.get("a", "b/c")


async def test_the_least_recently_used_go_first(open_store: OpenStore) -> None:
    store = open_store(store_max_bytes=3500)  # three of 1000 bytes with their headers
    for name in "abc":
        await store.put("t", image(name, bytes(1000)))
    await store.get("t", "a")
    await store.put("t", image("d", bytes(1000)))
    assert await ids_in(store, "a", "b", "c", "d") == {"a", "c", "d"}


async def test_the_newest_stays_even_over_the_limit(open_store: OpenStore) -> None:
    store = open_store(store_max_bytes=10)
    await store.put("t", image("a", bytes(1000)))
    await store.put("t", image("b", bytes(1000)))
    assert await ids_in(store, "a", "b") == {"b"}


async def test_many_at_once(open_store: OpenStore) -> None:
    store = open_store()
    await asyncio.gather(*(store.put("t", image(str(number))) for number in range(50)))
    found = await asyncio.gather(*(store.get("t", str(number)) for number in range(50)))
    assert [stored.ref.id for stored in found] == [str(number) for number in range(50)]


# ------------------------------------------------------------------------------------- disk only


def test_records_keep_every_byte() -> None:
    for data in (b"", b"\n\n{}", bytes(range(256))):
        assert from_record(to_record(image("a", data))) == image("a", data)


async def test_survives_reopening(tmp_path: Path) -> None:
    store = open_image_store(ImageConfig(), tmp_path)
    await store.put("t", image("a"))
    store.close()
    store = open_image_store(ImageConfig(), tmp_path)
    assert await store.get("t", "a") == image("a")
    store.close()


WRITE = """
import asyncio, sys
from pathlib import Path
from deployments.config import ImageConfig
from deployments.images.stores.open import open_image_store
from deployments.types import ImageRef, StoredImage
store = open_image_store(ImageConfig(), Path(sys.argv[1]))
ref = ImageRef(id="a", width=3, height=2, num_bytes=4, media_type="image/png")
asyncio.run(store.put("t", StoredImage(ref, b"data")))
store.close()
"""


async def test_another_process_writes_and_this_one_reads(tmp_path: Path) -> None:
    store = open_image_store(ImageConfig(), tmp_path)
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", WRITE, str(tmp_path)], cwd=ROOT, check=True)
    assert await store.get("t", "a") == image("a", b"data")
    store.close()


async def test_nothing_of_a_name_becomes_a_path(tmp_path: Path) -> None:
    store = open_image_store(ImageConfig(), tmp_path)
    await store.put("../escape", image("../../escape", bytes(100_000)))
    names = {path.name for path in files_in(tmp_path)}
    assert len(names) > 1
    assert not any("escape" in name for name in names)
    store.close()


async def test_a_damaged_picture_is_not_found(tmp_path: Path) -> None:
    store = open_image_store(ImageConfig(), tmp_path)
    await store.put("t", image("a", bytes(100_000)))
    flip_last_byte(files_in(tmp_path, "*.val")[0])
    with pytest.raises(ImageNotFound):
        await store.get("t", "a")
    store.close()
