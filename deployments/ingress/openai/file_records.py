"""Uploaded files: a record each, which names a stored picture. Several files may name the same picture."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from deployments.errors import ImageNotFound, RecordNotFound
from deployments.ingress.error_replies import shorten
from deployments.ingress.services import Services
from deployments.record_types import Record

FILE_PREFIX = "file-"
PAGE = 1000  # records read at a time


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    created_s: float  # Unix time
    expires_s: float | None
    name: str  # as the client called it
    purpose: str
    num_bytes: int
    image_id: str

    @classmethod
    def from_record(cls, record: Record) -> StoredFile:
        body = json.loads(record.body)
        return cls(
            record.id,
            record.created_s,
            record.expires_s,
            body["name"],
            body["purpose"],
            body["num_bytes"],
            body["image_id"],
        )

    def to_record(self) -> Record:
        body = {"name": self.name, "purpose": self.purpose, "num_bytes": self.num_bytes, "image_id": self.image_id}
        return Record("file", self.id, self.created_s, json.dumps(body), self.expires_s)


def new_file_id() -> str:
    return f"{FILE_PREFIX}{secrets.token_hex(12)}"


async def find_file(services: Services, tenant: str, file_id: str) -> StoredFile:
    """Raises RecordNotFound."""
    with _naming(file_id, "file_id"):
        return StoredFile.from_record(await services.records.record(tenant, "file", file_id))


async def list_files(
    services: Services, tenant: str, limit: int, after: str | None, purpose: str | None, *, oldest_first: bool
) -> tuple[list[StoredFile], bool]:
    """At most `limit` files behind `after`, and whether there are more. Raises RecordNotFound for `after`."""
    found: list[StoredFile] = []
    with _naming(after or "", "after"):
        async for file in _files(services, tenant, after, min(limit + 1, PAGE), oldest_first=oldest_first):
            if purpose is None or file.purpose == purpose:
                found.append(file)
            if len(found) > limit:
                break
    return found[:limit], len(found) > limit


async def delete_file(services: Services, tenant: str, file_id: str) -> None:
    """Also the picture's bytes, unless another file names them. Raises RecordNotFound."""
    with _naming(file_id, "file_id"):
        file = StoredFile.from_record(await services.records.delete_record(tenant, "file", file_id))
    async for other in _files(services, tenant, None, PAGE, oldest_first=False):
        if other.image_id == file.image_id:
            return
    with contextlib.suppress(ImageNotFound):  # the store made room, or somebody deleted it by the picture's own id
        await services.pictures.delete(tenant, file.image_id)


async def _files(
    services: Services, tenant: str, after: str | None, page: int, *, oldest_first: bool
) -> AsyncIterator[StoredFile]:
    while True:
        records = await services.records.records(tenant, "file", page, after, oldest_first=oldest_first)
        for record in records:
            yield StoredFile.from_record(record)
        if len(records) < page:
            return
        after = records[-1].id


@contextlib.contextmanager
def _naming(file_id: str, param: str) -> Iterator[None]:
    """Whoever keeps records speaks of records."""
    try:
        yield
    except RecordNotFound as error:
        raise RecordNotFound(f"there is no file {shorten(file_id)!r}; POST /v1/files gives ids", param) from error
