"""One contract for all image stores, then what only the disk store promises."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployments.bytes_cache import FILE_FROM, BytesCache
from deployments.config import ImageConfig
from deployments.errors import ImageNotFound, PartUnavailable
from deployments.images.stores.disk import MAX_HEADER_BYTES, DiskImageStore, ref_of_record, to_record
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


@pytest.mark.parametrize("data", [b"", b"\n\n{}", bytes(range(256)) * 10_000], ids=["empty", "lines", "large"])
async def test_every_byte_comes_back(open_store: OpenStore, data: bytes) -> None:
    store = open_store()
    await store.put("t", image("a", data))
    assert await store.get("t", "a") == image("a", data)
    assert await store.find("t", "a") == image("a", data).ref


async def test_what_is_deleted_is_found_no_more(open_store: OpenStore) -> None:
    store = open_store()
    await store.put("t", image("a"))
    assert await store.find("t", "a") == image("a").ref
    await store.delete("t", "a")
    for call in (store.find, store.get, store.delete):
        with pytest.raises(ImageNotFound, match="'a'"):
            await call("t", "a")
    await store.put("t", image("a"))
    assert await store.find("t", "a") == image("a").ref


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
        for call in (store.find, store.delete):
            with pytest.raises(ImageNotFound):
                await call("t", id)


async def test_tenants_do_not_see_each_other(open_store: OpenStore) -> None:
    store = open_store()
    await store.put("one", image("a"))
    for call in (store.get, store.find, store.delete):
        with pytest.raises(ImageNotFound):
            await call("other", "a")
    assert await store.get("one", "a") == image("a")


async def test_names_cannot_be_read_as_other_names(open_store: OpenStore) -> None:
    store = open_store()
    await store.put("a/b", image("c"))
    with pytest.raises(ImageNotFound):
        await store.get("a", "b/c")


@pytest.mark.parametrize("use", ["get", "find"])
async def test_the_least_recently_used_go_first(open_store: OpenStore, use: str) -> None:
    """Being found is a use: pictures whose features are cached are never read."""
    store = open_store(store_max_bytes=3700)  # three of 1000 bytes with their headers
    for name in "abc":
        await store.put("t", image(name, bytes(1000)))
    await getattr(store, use)("t", "a")
    await store.put("t", image("d", bytes(1000)))
    assert await ids_in(store, "a", "b", "c", "d") == {"a", "c", "d"}
    with pytest.raises(ImageNotFound):
        await store.find("t", "b")


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


def test_headers_are_believed_under_their_key_only() -> None:
    record = to_record("key", image("a"))
    assert ref_of_record("key", record[:MAX_HEADER_BYTES]) == image("a").ref
    assert ref_of_record("other", record) is None
    assert ref_of_record("key", record.replace(b'"width": 3', b'"width": 4')) is None
    assert [ref_of_record("key", start) for start in (b"", b"\n", record[:80], b"{}\ndata")] == [None] * 4


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


async def test_finding_reads_no_more_than_the_start(tmp_path: Path) -> None:
    store = open_image_store(ImageConfig(), tmp_path)
    await store.put("t", image("a", bytes(1_000_000)))
    (file,) = files_in(tmp_path, "*.val")
    os.truncate(file, 5000)
    assert await store.find("t", "a") == image("a", bytes(1_000_000)).ref
    with pytest.raises(ImageNotFound):
        await store.get("t", "a")
    with pytest.raises(ImageNotFound):  # reading has dropped it
        await store.find("t", "a")
    store.close()


async def test_a_damaged_header_is_not_believed(tmp_path: Path) -> None:
    store = open_image_store(ImageConfig(), tmp_path)
    await store.put("t", image("a", bytes(FILE_FROM)))
    (file,) = files_in(tmp_path, "*.val")
    file.write_bytes(file.read_bytes().replace(b'"width": 3', b'"width": 9'))
    with pytest.raises(ImageNotFound):
        await store.find("t", "a")
    assert files_in(tmp_path, "*.val") == []
    store.close()


async def test_a_picture_whose_file_is_gone_is_not_found(tmp_path: Path) -> None:
    store = open_image_store(ImageConfig(), tmp_path)
    await store.put("t", image("a", bytes(FILE_FROM)))
    files_in(tmp_path, "*.val")[0].unlink()
    with pytest.raises(ImageNotFound):
        await store.find("t", "a")
    store.close()


async def test_a_full_disk_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "the secret internals of a disk")

    store = open_image_store(ImageConfig(), tmp_path)
    for method in ("put", "get", "start_of", "delete"):
        monkeypatch.setattr(BytesCache, method, full)
    for call in (store.put("t", image("a")), store.get("t", "a"), store.find("t", "a"), store.delete("t", "a")):
        with pytest.raises(PartUnavailable) as caught:
            await call
        assert caught.value.message == "the image store cannot be read or written"
        assert caught.value.retry_after_s
    assert "internals" in caplog.text
    store.close()


async def test_a_picture_that_the_disk_does_not_give_is_not_called_missing(tmp_path: Path) -> None:
    store = open_image_store(ImageConfig(), tmp_path)
    await store.put("t", image("a", bytes(FILE_FROM)))
    (file,) = files_in(tmp_path, "*.val")
    aside = file.rename(tmp_path / "aside")
    file.mkdir()  # opening it fails, whoever we are
    for call in (store.get, store.find):
        with pytest.raises(PartUnavailable):
            await call("t", "a")
    file.rmdir()
    aside.rename(file)
    assert await store.get("t", "a") == image("a", bytes(FILE_FROM))
    store.close()


async def test_a_damaged_picture_is_not_found(tmp_path: Path) -> None:
    store = open_image_store(ImageConfig(), tmp_path)
    await store.put("t", image("a", bytes(100_000)))
    flip_last_byte(files_in(tmp_path, "*.val")[0])
    with pytest.raises(ImageNotFound):
        await store.get("t", "a")
    store.close()
