"""What a batch is to do: items out of a folder of pictures, or of lines of JSON, each with a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import ValidationError

from deployments.commands.stdin_lines import StdinLines
from deployments.commands.terminal import read_picture
from deployments.errors import InvalidRequest, RetinaError

if TYPE_CHECKING:
    from deployments.config import RetinaConfig
    from deployments.ingress.schemas import ChatRequest
    from deployments.ingress.task_requests import PictureFields

TaskName = Literal["caption", "query", "detect", "point", "chat"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
# Of the requests, what has no place in a batch: items are answered side by side, each by itself.
NOT_HERE = frozenset({"image_id", "session_id", "stream", "resumable"})
MAX_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True)
class Item:
    id: str
    fingerprint: str  # of what is asked, the picture's bytes included
    task: str = ""  # "" of a line that names none that there is
    image: str | None = None  # as it was given
    asked: ChatRequest | PictureFields | None = None  # None where there is a problem
    picture: bytes | None = field(default=None, repr=False)
    problem: RetinaError | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.id, self.fingerprint


@dataclass(frozen=True, slots=True)
class Defaults:
    """For items that do not say; a field counts for the tasks that have it."""

    task: TaskName
    fields: Mapping[str, object]

    def of(self, task: TaskName) -> dict[str, object]:
        return {name: value for name, value in self.fields.items() if name in fields_of(task)}


@dataclass(frozen=True, slots=True)
class Given:
    """An item before anything is read of its picture."""

    id: str
    what: object  # JSON, or the text of a line that is none


@dataclass(frozen=True, slots=True)
class Source:
    """Where items come from."""

    folder: Path  # that paths of pictures are relative to
    given: Sequence[Given] | None  # None: lines of stdin, as they come

    async def items(self) -> AsyncIterator[Given]:
        """Raises InvalidRequest for a stdin that is no text."""
        if self.given is None:
            async for one in _from_stdin():
                yield one
            return
        for one in self.given:
            yield one


def open_source(place: str) -> Source:
    """`-` is stdin. Raises InvalidRequest."""
    if place == "-":
        return Source(Path(), None)
    path = Path(place).expanduser()
    try:
        if path.is_dir():
            return _folder(path)
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # str.splitlines breaks lines within JSON's texts
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is no text: a line is a JSON object; for pictures, name their folder") from error
    given = [Given(str(number), _parse(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    return Source(path.parent, given)


def _folder(folder: Path) -> Source:
    """Its pictures, those of folders in it as well, but nothing hidden."""
    below = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    names = [path.as_posix() for path in below if not any(part.startswith(".") for part in path.parts)]
    if not names:
        raise InvalidRequest(f"{folder} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
    return Source(folder, [Given(name, {"image": name}) for name in names])


async def _from_stdin() -> AsyncIterator[Given]:
    lines = StdinLines()
    number = 0
    try:
        while (line := await lines.next_line()) is not None:
            number += 1
            if line.strip():
                yield Given(str(number), _parse(line))
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"stdin, line {number + 1} or soon after it: {error}") from error


def _parse(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return line


def read_item(given: Given, folder: Path, defaults: Defaults) -> Item:
    """Reads the picture, so it blocks. What is wrong with the item stands in it as its problem."""
    item_id, fingerprint = _writable(given.id), _digest(given.what)
    task: TaskName | Literal[""] = ""
    image: str | None = None
    try:
        fields = _fields(given.what)
        item_id = _take_id(fields, item_id)
        task = _take_task(fields, defaults)
        image = _take_image(fields)
        asked = to_asked(task, {**defaults.of(task), **fields})
        picture = None if image is None else read_picture(folder / image)
    except RetinaError as error:
        return Item(item_id, fingerprint, task, image and _writable(image), problem=error)
    what = {"task": task, **asked.model_dump(mode="json", exclude_unset=True)}
    return Item(item_id, _digest(what, picture), task, image and _writable(image), asked, picture)


def fields_of(task: TaskName) -> frozenset[str]:
    """What an item of this task may say beside id, task and image."""
    names = frozenset(_shape(task).model_fields) - NOT_HERE - {"image"}
    return names - {"message"} | {"question"} if task == "chat" else names


def to_asked(task: TaskName, fields: Mapping[str, object]) -> ChatRequest | PictureFields:
    """Raises InvalidRequest naming the field and what is allowed."""
    allowed = fields_of(task)
    unknown = [name for name in fields if name not in allowed]
    if unknown:
        there_are = ", ".join(sorted({"id", "task", "image"} | allowed))
        raise InvalidRequest(f"{task} takes no {unknown[0][:MAX_SHOWN_CHARS]!r}; there are {there_are}", unknown[0])
    renamed = {"message" if task == "chat" and name == "question" else name: value for name, value in fields.items()}
    try:
        return _shape(task).model_validate(renamed, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(str(step) for step in problem["loc"])
        name = "question" if name == "message" else name
        raise InvalidRequest(f"{name}: {problem['msg'].removeprefix('Value error, ')}", name) from error


def models_of(given: Sequence[Given], defaults: Defaults, config: RetinaConfig) -> list[str]:
    """Those that will be asked; items that name no model of the config, or no task, ask none."""
    from deployments.ingress.model_choice import choose_model

    asked: set[str] = set()
    for one in given:
        try:
            fields = _fields(one.what)
            task = _take_task(fields, defaults)
            model = fields.get("model", defaults.fields.get("model"))
            wished = model if isinstance(model, str) else None
            asked.add(wished or config.first_model if task == "chat" else choose_model(config, task, wished))
        except RetinaError:
            continue  # the item will say so when its turn comes
    return [model.name for model in config.models if model.name in asked]


def _shape(task: TaskName) -> type[ChatRequest | PictureFields]:
    from deployments.ingress.schemas import ChatRequest
    from deployments.ingress.task_requests import CaptionRequest, DetectRequest, PointRequest, QueryRequest

    shapes: dict[TaskName, type[ChatRequest | PictureFields]] = {
        "caption": CaptionRequest,
        "query": QueryRequest,
        "detect": DetectRequest,
        "point": PointRequest,
        "chat": ChatRequest,
    }
    return shapes[task]


def _fields(given: object) -> dict[str, object]:
    if not isinstance(given, dict):
        shown = str(given).strip()[:MAX_SHOWN_CHARS]
        raise InvalidRequest(f'a line is a JSON object such as {{"image": "cat.png"}}; this one is {shown!r}')
    return dict(given)


def _take_id(fields: dict[str, object], otherwise: str) -> str:
    given = fields.pop("id", otherwise)
    if not isinstance(given, str | int) or isinstance(given, bool) or given == "":
        raise InvalidRequest("id is a text or a whole number", "id")
    return _writable(str(given))


def _writable(text: str) -> str:
    """Names of files may hold bytes that are no text, which Python shows as halves of surrogate pairs."""
    return text.encode(errors="backslashreplace").decode()


def _take_task(fields: dict[str, object], defaults: Defaults) -> TaskName:
    given = fields.pop("task", defaults.task)
    for task in TASKS:
        if given == task:
            return task
    raise InvalidRequest(f"unknown task {str(given)[:MAX_SHOWN_CHARS]!r}; there are {', '.join(TASKS)}", "task")


def _take_image(fields: dict[str, object]) -> str | None:
    given = fields.pop("image", None)
    if given is None:
        return None
    if not isinstance(given, str) or not given or "\0" in given:
        raise InvalidRequest("image is the path of a picture", "image")
    if "://" in given or given.startswith("data:"):
        raise InvalidRequest(f"image {given[:MAX_SHOWN_CHARS]!r} is a URL, which is not fetched; give a path", "image")
    return given


def _digest(what: object, picture: bytes | None = None) -> str:
    told = json.dumps(what, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass")
    seen = b"" if picture is None else hashlib.sha256(picture).digest()
    return hashlib.sha256(hashlib.sha256(told).digest() + seen).hexdigest()[:32]
