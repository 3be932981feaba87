"""The models in your own process: SmolVLM, Moondream, Qwen2VL, Llava, and VisionLanguageChatSystem over any of them.

A synchronous face of the same graph that serves over HTTP: no server, no Ray. Pictures are PIL images, paths or the
bytes of a file.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self, Unpack

from deployments.errors import ConfigError, InvalidRequest
from deployments.families import FAMILIES
from deployments.in_process.answers import Answer, AnswerStream, finish
from deployments.in_process.bridge import Pull
from deployments.in_process.inputs import Sampling, to_messages, to_wish
from deployments.in_process.model import Loadable, Model, Place
from deployments.types import Box, Chunk, DetectTask, ImagePart, Message, Part, Point, PointTask

if TYPE_CHECKING:
    from deployments.in_process.inputs import Picture

__all__ = [
    "Answer",
    "AnswerStream",
    "Llava",
    "Model",
    "Moondream",
    "Qwen2VL",
    "SmolVLM",
    "VisionLanguageChatSystem",
]


class ScalingModel(Model):
    """A model that scales pictures down to `max_image_tokens`, what one of them may cost."""

    def __init__(
        self, checkpoint: str | Path | None = None, *, max_image_tokens: int | None = None, **place: Unpack[Place]
    ) -> None:
        super().__init__(checkpoint, **place)
        self._max_image_tokens = max_image_tokens

    def _section(self) -> dict[str, object]:
        return {**super()._section(), "max_image_tokens": self._max_image_tokens}


class SmolVLM(ScalingModel):
    """SmolVLM-Instruct, -256M, -500M and SmolVLM2, or the demo checkpoint.

    >>> from deployments.vlm import SmolVLM
    >>> with SmolVLM() as model:
    ...     model.caption("demo/images/blue-square-and-yellow-star.jpg", prompt="Describe this")
    'I see a blue square at the top left and a yellow star at the bottom right on a gray background.'
    """

    family = "smolvlm"


class Qwen2VL(ScalingModel):
    """Qwen2-VL and Qwen2.5-VL, or the demo checkpoint; captions in several languages.

    Without `max_image_tokens` a picture takes at most 1280.

    >>> from deployments.vlm import Qwen2VL
    >>> with Qwen2VL() as model:
    ...     for chunk in model.caption("demo/images/red-circle.png", language="ja", stream=True):
    ...         print(chunk, end="", flush=True)
    白い背景の中央に赤い円があります。
    """

    family = "qwen2_vl"


class Llava(Model):
    """LLaVA 1.5 and others of its kind, or the demo checkpoint.

    >>> from deployments.vlm import Llava
    >>> with Llava() as model:
    ...     model.query("demo/images/red-circle.png", "What color is the circle?")
    'It is red.'
    """

    family = "llava"


class Moondream(Model):
    """moondream2, or the demo checkpoint; it also finds things.

    The released checkpoint's tokenizer is in a repository of its own, which a hub id takes by itself; for a folder
    name it with `tokenizer`.

    >>> from deployments.vlm import Moondream
    >>> model = Moondream(); model = model.load()
    >>> for chunk in model.query("demo/images/red-circle.png", "What color is the circle?", stream=True):
    ...     print(chunk, end="", flush=True)
    It is red.
    >>> len(model.detect("demo/images/red-circle.png", "circle"))
    1
    >>> model.close()
    """

    family = "moondream"
    released_tokenizer: ClassVar[str] = "moondream/starmie-v1"

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        *,
        tokenizer: str | None = None,
        tokenizer_revision: str | None = None,
        **place: Unpack[Place],
    ) -> None:
        super().__init__(checkpoint, **place)
        self._tokenizer = tokenizer or (self.released_tokenizer if self._is_hub_id else None)
        is_folder = self._tokenizer is None or Path(self._tokenizer).is_dir()
        self._tokenizer_revision = tokenizer_revision if is_folder else tokenizer_revision or "main"

    def detect(self, image: Picture, object: str, *, max_objects: int = 50) -> list[Box]:
        """Where things of a kind are, as shares of the picture's width and height."""
        found = finish(self._events(DetectTask(object, max_objects), image, {})).found
        return [thing for thing in found if isinstance(thing, Box)]

    def point(self, image: Picture, object: str, *, max_objects: int = 50) -> list[Point]:
        """A point on each thing of a kind, as shares of the picture's width and height."""
        found = finish(self._events(PointTask(object, max_objects), image, {})).found
        return [thing for thing in found if isinstance(thing, Point)]

    def _section(self) -> dict[str, object]:
        section = super()._section()
        return {**section, "tokenizer": self._tokenizer, "tokenizer_revision": self._tokenizer_revision}


MODELS: Mapping[str, type[Model]] = {model.family: model for model in (SmolVLM, Moondream, Qwen2VL, Llava)}


def _model_class(family: str) -> type[Model]:
    """Raises ConfigError naming the choices. A family without a class of its own has no options of its own either."""
    families = [name for name, entry in FAMILIES.items() if entry.module]
    if family not in families:
        raise ConfigError(f"unknown model {family!r}; there is {', '.join(families)}", "model")
    return MODELS.get(family) or type(family, (Model,), {"family": family})


class VisionLanguageChatSystem(Loadable):
    """Conversations about pictures with one of the models; the caller keeps the history.

    `model` is a family (smolvlm, moondream, qwen2_vl, llava), or a Model of your own making.

    >>> from deployments.vlm import VisionLanguageChatSystem
    >>> with VisionLanguageChatSystem(model="smolvlm") as chat:
    ...     history = [{"role": "user", "content": "Hello, my name is Ada"},
    ...                {"role": "assistant", "content": "Hello Ada! Nice to meet you."}]
    ...     "".join(chat.chat(None, "What is my name?", history=history))
    'Your name is Ada.'
    """

    def __init__(
        self, model: str | Model = "smolvlm", checkpoint: str | Path | None = None, **place: Unpack[Place]
    ) -> None:
        if isinstance(model, Model):
            if checkpoint is not None or place:
                raise ConfigError("a model that is made already takes no checkpoint and no options here", "model")
            self._model = model
        else:
            self._model = _model_class(model)(checkpoint, **place)

    def load(self) -> Self:
        self._model.load()
        return self

    def close(self) -> None:
        self._model.close()

    def chat(
        self,
        image: Picture | None,
        question: str,
        history: Sequence[Mapping[str, str]] | None = None,
        **sampling: Unpack[Sampling],
    ) -> Generator[str, None, None]:
        """Pieces of the answer as they come. The picture stands before the conversation's first question.

        `history` holds what was said before, oldest first: {"role": "user" or "assistant", "content": text}.
        """
        messages = to_messages(history, question)
        wish = to_wish(sampling)
        if wish.num_logprobs is not None:
            raise InvalidRequest("chat gives texts alone; caption and query have logprobs", "logprobs")
        if image is not None:
            messages = _show(self._model.add_image(image), messages)
        return _texts(self._model.ask(tuple(messages), wish))


def _texts(chunks: Pull[Chunk]) -> Generator[str, None, None]:
    with chunks:
        for chunk in chunks:
            if chunk.text:
                yield chunk.text


def _show(picture: ImagePart, messages: list[Message]) -> list[Message]:
    first = next(index for index, message in enumerate(messages) if message.role == "user")
    shown: tuple[Part, ...] = (picture, *messages[first].content)
    return [*messages[:first], Message("user", shown), *messages[first + 1 :]]
