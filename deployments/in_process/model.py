"""One model in the caller's process: loading, captions and questions, which all families have."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Literal, Self, TypedDict, Unpack, overload

from deployments.errors import ConfigError, InvalidRequest
from deployments.in_process.answers import Answer, AnswerStream, finish
from deployments.in_process.bridge import InProcess, Pull
from deployments.in_process.inputs import Sampling, read_picture, to_wish
from deployments.ingress.task_types import TaskEvent
from deployments.ingress.turn_types import SamplingWish
from deployments.types import CaptionLength, CaptionTask, Chunk, ImagePart, Message, QueryTask, Task

if TYPE_CHECKING:
    from deployments.in_process.inputs import Picture

DEMO_CHECKPOINTS = Path(__file__).parents[2] / "demo" / "checkpoints"


class Place(TypedDict, total=False):
    """Where a model's weights come from and where they run."""

    revision: str | None  # of a hub id; "main" when none is given
    device: str  # auto, cpu or cuda
    dtype: str  # auto, float32, bfloat16 or float16
    num_threads: int | None  # of torch; None: as many as this process may use cores
    num_slots: int  # answers that can be generated at a time, 2 by default; each holds a KV cache
    max_context_tokens: int  # of prompt and answer together, 2048 by default; a checkpoint's lower limit wins


class Loadable(ABC):
    """A `with` block loads at its beginning and closes at its end."""

    @abstractmethod
    def load(self) -> Self: ...

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self.load()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Model(Loadable):
    """One model in this process. `load` reads the weights, which the first question does otherwise; `close`, or the
    end of a `with` block, gives the memory back.

    `checkpoint` is a folder or a hub id; without one it is the demo checkpoint. A hub id is read at `revision`, "main"
    when none is given. `device` is auto, cpu or cuda; `dtype` auto, float32, bfloat16 or float16.

    A family that has no class in vlm.py gets one by its name:

    >>> from deployments.vlm import Model
    >>> class MyModel(Model):
    ...     family = "smolvlm"
    >>> with MyModel("demo/checkpoints/smolvlm") as model:
    ...     model.query("demo/images/red-circle.png", "What color is the circle?", max_new_tokens=20)
    'It is red.'
    """

    family: ClassVar[str]

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        **place: Unpack[Place],
    ) -> None:
        unknown = [name for name in place if name not in Place.__annotations__]
        if unknown:
            raise ConfigError(f"unknown option {unknown[0]!r}; there is {', '.join(Place.__annotations__)}", unknown[0])
        folder = DEMO_CHECKPOINTS / self.family if checkpoint is None else Path(checkpoint)
        self._is_hub_id = not folder.is_dir() and not folder.is_absolute()
        self._checkpoint = str(folder if checkpoint is None else checkpoint)
        self._place = place
        self._changing = threading.Lock()  # guards what follows
        self._running: InProcess | None = None

    def load(self) -> Self:
        """Read the weights and return the model itself. Raises CheckpointError, ConfigError."""
        self._load()
        return self

    def close(self) -> None:
        """Running answers fail with PartUnavailable, and the memory is free; the next question loads anew."""
        with self._changing:
            running, self._running = self._running, None
        if running is not None:
            running.close()

    @overload
    def caption(
        self,
        image: Picture,
        *,
        length: CaptionLength | None = ...,
        language: str | None = ...,
        prompt: str | None = ...,
        stream: Literal[False] = ...,
        **sampling: Unpack[Sampling],
    ) -> Answer: ...

    @overload
    def caption(
        self,
        image: Picture,
        *,
        length: CaptionLength | None = ...,
        language: str | None = ...,
        prompt: str | None = ...,
        stream: Literal[True],
        **sampling: Unpack[Sampling],
    ) -> AnswerStream: ...

    def caption(
        self,
        image: Picture,
        *,
        length: CaptionLength | None = None,
        language: str | None = None,
        prompt: str | None = None,
        stream: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Answer | AnswerStream:
        """Describe a picture: the text, or with `stream` its pieces as they come.

        `length` is short, normal (the default) or long; `language` an ISO 639 code, "en" by default; `prompt` stands in
        place of both. `sampling` takes temperature, top_p, top_k, min_p, seed, repetition_penalty, presence_penalty,
        frequency_penalty, max_new_tokens, stop, and logprobs for the answer's `logprobs`. Raises InvalidRequest for a
        language that the model does not have, InvalidImage.
        """
        if prompt is not None and (length is not None or language is not None):
            raise InvalidRequest("prompt replaces length and language; give it without them", "prompt")
        task = CaptionTask(length or "normal", language or "en", prompt)
        return self._answer(task, image, sampling, stream=stream)

    @overload
    def query(
        self,
        image: Picture | None,
        question: str,
        *,
        reasoning: bool = ...,
        stream: Literal[False] = ...,
        **sampling: Unpack[Sampling],
    ) -> Answer: ...

    @overload
    def query(
        self,
        image: Picture | None,
        question: str,
        *,
        reasoning: bool = ...,
        stream: Literal[True],
        **sampling: Unpack[Sampling],
    ) -> AnswerStream: ...

    def query(
        self,
        image: Picture | None,
        question: str,
        *,
        reasoning: bool = False,
        stream: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Answer | AnswerStream:
        """Answer a question about a picture, or with None about nothing seen: the text, or its pieces as they come.

        With `reasoning`, of models that have it, the answer's `thought` holds what came before it.
        """
        return self._answer(QueryTask(question, reasoning), image, sampling, stream=stream)

    # ------------------------------------------------------------------------------- the bridge

    def ask(self, messages: tuple[Message, ...], sampling: SamplingWish) -> Pull[Chunk]:
        """The answer to a conversation whose pictures `add_image` gave."""
        return self._load().generate(messages, sampling)

    def add_image(self, image: Picture) -> ImagePart:
        return ImagePart(self._load().add_image(read_picture(image)))

    def _load(self) -> InProcess:
        with self._changing:
            if self._running is None:
                place = self._place
                self._running = InProcess(
                    self._section(),
                    device=place.get("device", "auto"),
                    dtype=place.get("dtype", "auto"),
                    num_threads=place.get("num_threads"),
                    num_slots=place.get("num_slots", 2),
                    max_context_tokens=place.get("max_context_tokens", 2048),
                )
            return self._running

    def _section(self) -> dict[str, object]:
        """The model's section of a configuration."""
        revision = self._place.get("revision") or ("main" if self._is_hub_id else None)
        return {"name": self.family, "family": self.family, "checkpoint": self._checkpoint, "revision": revision}

    def _answer(self, task: Task, image: Picture | None, sampling: Sampling, *, stream: bool) -> Answer | AnswerStream:
        events = self._events(task, image, sampling)
        return AnswerStream(events) if stream else Answer.from_reply(finish(events))

    def _events(self, task: Task, image: Picture | None, sampling: Sampling) -> Pull[TaskEvent]:
        ref = None if image is None else self._load().add_image(read_picture(image))
        return self._load().run_task(task, ref, to_wish(sampling))
