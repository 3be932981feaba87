"""Moondream's prompts: BOS, the picture's rows, then what is asked between the checkpoint's own ids. No pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from deployments.errors import InvalidRequest
from deployments.models.family import ImageSpan, Prompt
from deployments.models.moondream_tokenizer import MoondreamTokenizer
from deployments.models.moondream_tokens import Around, TokenIds
from deployments.models.tasks import caption_prompt, choose_language, choose_length
from deployments.types import SKILL_OF, CaptionTask, DetectTask, ImageRef, Message, PointTask, QueryTask, Task


@dataclass(slots=True)
class Draft:
    """A prompt while it is being written."""

    token_ids: list[int]
    places: list[tuple[int, tuple[float, ...]]] = field(default_factory=list)


class MoondreamPromptFormat:
    repetition_penalty = 1.0
    byte_token_ids: frozenset[int] = frozenset()  # its vocabulary is byte-level

    def __init__(self, tokenizer: MoondreamTokenizer, tokens: TokenIds, image_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._image_tokens = image_tokens
        # Not generation_config's: moondream2's code does not read it, and on the hub it was left behind at times.
        self.stop_token_ids = frozenset({tokens.eos_id})

    def build(self, messages: Sequence[Message], task: Task | None = None) -> Prompt:
        picture = _only_picture(messages)
        # The picture's rows are laid over its places; which ids stand there plays no part.
        num_mutual = 1 + self._image_tokens if picture else 0
        draft = Draft([self._tokens.bos_id] * max(1, num_mutual))
        if task is None:
            self._write_conversation(messages, draft)
        else:
            self._write_task(task, picture, draft)
        length = len(draft.token_ids)
        return Prompt(
            tuple(draft.token_ids),
            positions=np.arange(length, dtype=np.int64)[None],  # (1, S)
            next_position=length,
            images=(ImageSpan(picture.id, 1, self._image_tokens),) if picture else (),
            task=task,
            num_mutual=num_mutual,
            places=tuple(draft.places),
        )

    def tokenizer_json(self) -> str:
        return self._tokenizer.to_json()

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids)

    # ------------------------------------------------------------------ conversations

    def _write_conversation(self, messages: Sequence[Message], draft: Draft) -> None:
        """Moondream was trained on one question at a time: each exchange is written as one, one after the other."""
        around = self._around(self._tokens.query, "query")
        for message in messages:
            if message.role == "user":
                draft.token_ids += (*around.prefix, *self._tokenizer.encode(message.text), *self._tokens.question_end)
            elif message.role == "assistant":
                draft.token_ids += (*self._tokenizer.encode(message.text), self._tokens.eos_id)
            else:
                raise InvalidRequest(
                    f"this model takes no {message.role} messages and no instructions; it takes messages of user and "
                    "assistant",
                    "role",
                )
        if not messages or messages[-1].role != "user":
            raise InvalidRequest("the last message should be the user's", "message")

    # ------------------------------------------------------------------ tasks

    def _write_task(self, task: Task, picture: ImageRef | None, draft: Draft) -> None:
        if picture is None and not isinstance(task, QueryTask):
            raise InvalidRequest(f"{SKILL_OF[type(task)]} needs a picture", "image")
        if isinstance(task, QueryTask):
            self._write_query(task, picture, draft)
        elif isinstance(task, CaptionTask):
            self._write_caption(task, draft)
        else:
            self._write_object(task, draft)

    def _write_caption(self, task: CaptionTask, draft: Draft) -> None:
        if prompt := caption_prompt(task):  # moondream2 has no captions in other words: these are asked as a question
            self._write_question(QueryTask(prompt), draft)
            draft.token_ids += self._tokens.question_end
            return
        choose_language(task.language, ("en",))
        if not self._tokens.captions:
            raise self._lacks("caption")
        draft.token_ids += self._tokens.captions[choose_length(task.length, self._tokens.captions)]

    def _write_query(self, task: QueryTask, picture: ImageRef | None, draft: Draft) -> None:
        if task.spatial_refs and picture is None:
            raise InvalidRequest("points and boxes need a picture that they lie in", "spatial_refs")
        self._write_question(task, draft)
        if not task.reasoning:
            draft.token_ids += self._tokens.question_end
            return
        if self._tokens.thinking_id is None or self._tokens.answer_id is None:
            raise InvalidRequest("this checkpoint has no reasoning; leave out `reasoning`", "reasoning")
        draft.token_ids += (*self._around(self._tokens.query, "query").suffix, self._tokens.thinking_id)

    def _write_question(self, task: QueryTask, draft: Draft) -> None:
        draft.token_ids += self._around(self._tokens.query, "query").prefix
        for reference in task.spatial_refs:
            self._write_reference(reference, draft)
        draft.token_ids += self._tokenizer.encode(task.question)

    def _write_reference(self, reference: Sequence[float], draft: Draft) -> None:
        coord_id, size_id = self._tokens.coord_id, self._tokens.size_id
        if coord_id is None or size_id is None:
            raise InvalidRequest("this checkpoint takes no points and boxes; leave out `spatial_refs`", "spatial_refs")
        if len(reference) not in (2, 4) or not all(math.isfinite(each) for each in reference):
            raise InvalidRequest(
                "each of spatial_refs should be a point (x, y) or a box (x_min, y_min, x_max, y_max)", "spatial_refs"
            )
        x, y, *size = reference if len(reference) == 2 else _center_and_size(reference)
        for coordinate in (x, y):
            draft.places.append((len(draft.token_ids), (coordinate,)))
            draft.token_ids.append(coord_id)
        if size:
            draft.places.append((len(draft.token_ids), tuple(size)))
            draft.token_ids.append(size_id)

    def _write_object(self, task: DetectTask | PointTask, draft: Draft) -> None:
        template = self._tokens.detect if isinstance(task, DetectTask) else self._tokens.point
        around = self._around(template, SKILL_OF[type(task)])
        draft.token_ids += (*around.prefix, *self._tokenizer.encode(f" {task.object}"), *around.suffix)

    def _around(self, around: Around | None, skill: str) -> Around:
        if around is None:
            raise self._lacks(skill)
        return around

    def _lacks(self, skill: str) -> InvalidRequest:
        return InvalidRequest(
            f"this checkpoint has no skill {skill!r}; it has {', '.join(self._tokens.skills)}", "model"
        )


def _only_picture(messages: Sequence[Message]) -> ImageRef | None:
    """The picture that a conversation is about. Raises InvalidRequest when there are two."""
    pictures = {image.id: image for message in messages for image in message.images}
    if len(pictures) > 1:
        raise InvalidRequest(f"this model sees one picture in a conversation, not {len(pictures)}", "image")
    return next(iter(pictures.values()), None)


def _center_and_size(box: Sequence[float]) -> tuple[float, float, float, float]:
    x_min, y_min, x_max, y_max = box
    return (x_min + x_max) / 2, (y_min + y_max) / 2, x_max - x_min, y_max - y_min
