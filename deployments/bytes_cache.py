"""Bytes on disk under string keys: diskcache without pickle, every value with a checksum, folders closed to others.

Used by the disk image store and the disk level of the feature cache. All calls block, are thread-safe, and raise
OSError when the disk or its database fails. Not for what must survive a power cut: files are not synced.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import diskcache
from diskcache.core import EVICTION_POLICY, MODE_BINARY, MODE_RAW

from deployments.private_folder import make_private_folder

Eviction = Literal["least-recently-used", "none"]
CHECKSUM_BYTES = 16
NO_LIMIT = 2**62  # bytes
FILE_FROM = 2**15  # bytes; values from here on go to files of their own
OWN_FILE = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{28}\.val")  # as diskcache names them

logger = logging.getLogger(__name__)


class UnsafeRecord(Exception):
    """A row that only pickle could read, or that points out of its folder: nothing of ours wrote it."""


class FileVanished(Exception):
    """The file of a value went away between reading its row and opening it."""


class FileUnreadable(Exception):
    """The disk did not give a file that is there. No OSError: diskcache takes those for values that are gone."""


class BytesDisk(diskcache.Disk):  # type: ignore[misc]
    """diskcache's storage with its pickle paths closed: diskcache 5.6.3 unpickles what it reads (CVE-2025-69872)."""

    def put(self, key: object) -> tuple[object, bool]:
        if not isinstance(key, str):
            raise TypeError(f"keys are str, not {type(key).__name__}")
        return key, True

    def get(self, key: object, raw: bool) -> object:
        # None, not an error: this runs while iterating over keys, and a planted row must not hide the rest.
        return key if raw and isinstance(key, str) else None

    def store(self, value: object, read: bool, key: object = diskcache.UNKNOWN) -> Any:
        if read or not isinstance(value, bytes):
            raise TypeError(f"values are bytes, not {type(value).__name__}")
        _, mode, filename, db_value = super().store(value, read, key)
        return len(value), mode, filename, db_value  # diskcache counts values inside the database as 0 bytes

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> Any:
        if mode == MODE_RAW:
            return super().fetch(mode, filename, value, read)
        if mode != MODE_BINARY or not _is_own_file(filename):
            raise UnsafeRecord(f"storage mode {mode}, file {filename!r}")
        try:
            return super().fetch(mode, filename, value, read)
        except FileNotFoundError as error:
            raise FileVanished(filename) from error
        except OSError as error:
            raise FileUnreadable(filename) from error

    def remove(self, file_path: str) -> None:
        if _is_own_file(file_path):  # never delete what a planted row points to
            super().remove(file_path)


def _is_own_file(filename: str | None) -> bool:
    return filename is not None and OWN_FILE.fullmatch(filename) is not None


class ExactCache(diskcache.Cache):  # type: ignore[misc]
    """diskcache with a limit on the bytes of the values: it evicts one entry at a time and never the last one.

    diskcache itself drops ten entries whenever it is full, among them the one just written when there are fewer.
    """

    def volume(self) -> int:
        return int(self.reset("size"))

    def _cull(self, now: float, sql: Any, cleanup: Callable[[str], None], limit: int | None = None) -> None:
        policy = EVICTION_POLICY[self.eviction_policy]["cull"]
        while policy is not None and self.volume() > self.size_limit and len(self) > 1:
            ((rowid, filename),) = sql(policy.format(fields="rowid, filename", now=now), (1,)).fetchall()
            sql("DELETE FROM Cache WHERE rowid = ?", (rowid,))
            cleanup(filename)


class BytesCache:
    """A folder of checked bytes. Several processes of one machine may share it."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int | None,
        eviction: Eviction,
        on_corrupt: Callable[[str], None] | None,
    ) -> None:
        make_private_folder(folder)
        os.chmod(folder, 0o700)  # also when it was there: it is ours alone
        self._on_corrupt = on_corrupt
        with _disk_errors(folder):
            self._cache = ExactCache(
                str(folder),
                disk=BytesDisk,
                size_limit=max_bytes if max_bytes is not None else NO_LIMIT,
                eviction_policy=eviction,
                disk_min_file_size=FILE_FROM,
            )
        self.num_corrupt = 0  # entries dropped by this instance because they could not be trusted

    def get(self, key: str) -> bytes | None:
        """The value, or None. A value whose checksum is wrong, or that only pickle could read, is dropped."""
        stored = self._fetch(key)
        if stored is None:
            return None
        if not isinstance(stored, bytes) or _checksum(key, stored[CHECKSUM_BYTES:]) != stored[:CHECKSUM_BYTES]:
            self.drop(key, "wrong checksum")
            return None
        return stored[CHECKSUM_BYTES:]

    def start_of(self, key: str, max_bytes: int) -> bytes | None:
        """The first bytes of the value, or None; of a large value no more is read. It counts as a use.

        Not covered by the checksum of the value: the caller's own format must show whether they can be trusted.
        """
        stored = self._fetch(key, as_file=True)
        if isinstance(stored, BufferedReader):
            with stored:
                return stored.read(CHECKSUM_BYTES + max_bytes)[CHECKSUM_BYTES:]
        return stored[CHECKSUM_BYTES:][:max_bytes] if isinstance(stored, bytes) else None

    def put(self, key: str, value: bytes) -> None:
        with _disk_errors(key):
            self._cache.set(key, _checksum(key, value) + value)

    def delete(self, key: str) -> bool:
        """Whether there was such a key."""
        with _disk_errors(key):
            return bool(self._cache.delete(key))

    def drop(self, key: str, reason: str) -> None:
        """Forget an entry that cannot be trusted, and count it."""
        self.num_corrupt += 1
        logger.warning("dropped an entry of %s: %s", self._cache.directory, reason)
        self.delete(key)
        if self._on_corrupt is not None:
            self._on_corrupt(key)

    def keys(self, prefix: str = "") -> list[str]:
        with _disk_errors("keys"):
            return [key for key in self._cache if isinstance(key, str) and key.startswith(prefix)]

    @property
    def num_bytes(self) -> int:
        """Of the values and their checksums; the database's own pages come on top."""
        with _disk_errors("size"):
            return int(self._cache.volume())

    def __len__(self) -> int:
        with _disk_errors("count"):
            return len(self._cache)

    def close(self) -> None:
        """Close this thread's connection. Those of other threads close when their threads end."""
        self._cache.close()

    def _fetch(self, key: str, *, as_file: bool = False) -> object:
        """What is stored, None when there is nothing that we may read; `as_file` opens values in files of their own."""
        with _disk_errors(key):
            try:
                return self._read(key, as_file)
            except (UnsafeRecord, FileVanished) as error:
                self.drop(key, repr(error))
                return None

    def _read(self, key: str, as_file: bool) -> object:
        try:
            return self._cache.get(key, read=as_file)
        except FileVanished:
            # Another writer replaced the value between our look at the row and at its file; nobody can do so inside
            # a transaction. Not with `retry`: diskcache would spin for ever on a database that cannot be written.
            with self._cache.transact():
                return self._cache.get(key, read=as_file)


def _checksum(key: str, value: bytes) -> bytes:
    """Covers the key too, so that a value moved to another key is not believed."""
    name = key.encode()
    return hashlib.sha256(len(name).to_bytes(8, "big") + name + value).digest()[:CHECKSUM_BYTES]


@contextlib.contextmanager
def _disk_errors(doing: object) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, diskcache.Timeout) as error:
        raise OSError(f"the database failed at {doing}: {error!r}") from error
    except FileUnreadable as error:
        raise OSError(f"the file of {doing} cannot be read: {error.__cause__!r}") from error


def open_bytes_cache(
    folder: Path,
    max_bytes: int | None = None,
    eviction: Eviction = "none",
    on_corrupt: Callable[[str], None] | None = None,
) -> BytesCache:
    """Open or create the folder (mode 0700); close() when done.

    `max_bytes` takes effect with an eviction; the newest entry always stays. `on_corrupt` is called with each key
    dropped, in the thread that read it.
    """
    return BytesCache(folder, max_bytes, eviction, on_corrupt)
