"""From pairs to examples: the ids that a chat prompt has, and after each of them what is to be learnt.

Only answers are learnt, and the stop token behind each. An answer's ids stand behind exactly the prompt that the
service would have built before it, so what is learnt is what will be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import numpy as np

from deployments.errors import CheckpointError, InvalidRequest
from deployments.models.family import PromptFormat
from deployments.models.weights import read_json
from deployments.training.batches import IGNORED, Example
from deployments.training.pairs import Exchange, Pair, raise_problems
from deployments.types import CaptionTask, ImagePart, ImageRef, Message, Part, Task, TextPart

# Stands for every picture: families that train a projector give all pictures the same number of tokens.
ANY_PICTURE = ImageRef("picture", 1, 1, 1, "image/png")
PROBE = Exchange("?", "")
MAX_REMEMBERED = 100_000  # prompts and answers; data sets ask the same questions over and over


@dataclass(frozen=True, slots=True)
class _Prompt:
    head: tuple[int, ...]  # before the picture
    tail: tuple[int, ...]  # behind it
    image_tokens: int


class ExampleBuilder:
    """Raises CheckpointError when the checkpoint's template does not let an answer be told from what surrounds it.

    `first_stop_token_id` is learnt behind an answer where the template itself writes no stop token there.
    """

    def __init__(self, format: PromptFormat, first_stop_token_id: int, max_tokens: int) -> None:
        self._format = format
        self._max_tokens = max_tokens  # of the checkpoint's context, the picture included
        self._probe = self._build_prompt((PROBE,))
        self._before_answer, self._behind_answer = self._read_surroundings()
        follows = self._behind_answer[0]
        self._stop_token_id = follows if follows in format.stop_token_ids else first_stop_token_id
        self._remembered_prompt = lru_cache(MAX_REMEMBERED)(self._build_prompt)
        self._question = lru_cache(MAX_REMEMBERED)(self._build_question)
        self._answer = lru_cache(MAX_REMEMBERED)(self._build_answer)

    @property
    def image_tokens(self) -> int:
        return self._probe.image_tokens

    def build_all(self, pairs: Sequence[Pair], pictures: Sequence[int]) -> list[Example]:
        """Examples of all pairs; `pictures` says of each which it shows. Raises ConfigError naming bad entries."""
        examples: list[Example] = []
        problems: list[str] = []
        for pair, picture in zip(pairs, pictures, strict=True):
            try:
                examples += self.build(pair, picture)
            except InvalidRequest as error:
                problems.append(f"{pair.where}: {error}")
        raise_problems(problems)
        return examples

    def build(self, pair: Pair, picture: int) -> list[Example]:
        """One example; one for each answer where the template writes the past otherwise than it was asked and answered.

        Raises InvalidRequest.
        """
        row = self._in_one_row(pair, picture)
        examples = [row] if row is not None else self._turn_by_turn(pair, picture)
        for example in examples:
            self._require_room(example)
        return examples

    def _in_one_row(self, pair: Pair, picture: int) -> Example | None:
        """All answers, each behind its question; None where that is not what the template makes of it all.

        Put together from parts that come again in other conversations, and compared as a whole: asking the template for
        the prompt of every answer takes as many times as long as there are answers.
        """
        first = self._prompt(pair.exchanges[:1])
        tail, targets = list(first.tail), [IGNORED] * len(first.tail)
        for number, exchange in enumerate(pair.exchanges):
            question = self._question(exchange.question) if number else ()
            answer = self._answer(exchange.answer)
            num_asked = len(tail) + len(question)
            tail += question + answer
            targets += [IGNORED] * (len(question) + len(answer))
            targets[num_asked - 1 :] = (*answer, self._stop_token_id)
        whole = self._prompt(pair.exchanges)
        if (whole.head, whole.tail) != (first.head, tuple(tail[:num_asked])):
            return None
        return _to_example(pair, picture, whole.head, tail, targets)

    def _turn_by_turn(self, pair: Pair, picture: int) -> list[Example]:
        """The conversation up to each answer, with nothing but that answer to be learnt."""
        examples = []
        for count, exchange in enumerate(pair.exchanges, 1):
            prompt, answer = self._prompt(pair.exchanges[:count]), self._answer(exchange.answer)
            targets = [IGNORED] * (len(prompt.tail) - 1) + [*answer, self._stop_token_id]
            examples.append(_to_example(pair, picture, prompt.head, prompt.tail + answer, targets))
        return examples

    def _require_room(self, example: Example) -> None:
        length = example.num_text_tokens + self.image_tokens
        if length > self._max_tokens:
            raise InvalidRequest(f"takes {length} tokens with its picture; the checkpoint has {self._max_tokens}")

    def _prompt(self, exchanges: tuple[Exchange, ...]) -> _Prompt:
        """The prompt for the last one's answer."""
        return self._remembered_prompt((*exchanges[:-1], Exchange(exchanges[-1].question, "")))

    def _build_prompt(self, exchanges: tuple[Exchange, ...]) -> _Prompt:
        is_caption = exchanges[0].question is None
        return self._build(_to_messages(exchanges)[:-1], CaptionTask() if is_caption else None)

    def _build_answer(self, answer: str) -> tuple[int, ...]:
        """The ids of an answer alone: what stands between those that the template writes around answers."""
        ids = self._build(_to_messages([Exchange(PROBE.question, answer)])).tail
        begin, end = len(self._before_answer), len(ids) - len(self._behind_answer)
        if ids[:begin] != self._before_answer or ids[end:] != self._behind_answer or begin >= end:
            raise InvalidRequest(f"the answer {answer[:40]!r} runs into the template's own tokens around it")
        return ids[begin:end]

    def _build_question(self, question: str | None) -> tuple[int, ...]:
        """The ids of a later question, from behind the answer before it to where its own answer begins."""
        ids = self._build(_to_messages([Exchange(PROBE.question, "a"), Exchange(question, "")])[:-1]).tail
        return ids[len(self._before_answer) + len(self._answer("a")) :]

    def _read_surroundings(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the template writes before an answer, from the picture on, and behind it when the conversation goes on:
        where the ids of two answers agree."""
        one, other = (self._build(_to_messages([Exchange(PROBE.question, answer)])).tail for answer in "ab")
        prompt = self._probe.tail
        # Some templates write an earlier answer behind other words than those that they ask for one with.
        num_before = len(prompt) if one[: len(prompt)] == prompt else _num_equal(one, other)
        num_behind = _num_equal(one[::-1], other[::-1])
        if num_behind == 0 or num_before + num_behind >= len(one):
            raise CheckpointError("the checkpoint's chat template does not part answers from prompts", "base")
        return one[:num_before], one[-num_behind:]

    def _build(self, messages: Sequence[Message], task: Task | None = None) -> _Prompt:
        prompt = self._format.build(messages, task)
        [span] = prompt.images
        end = span.start + span.length
        return _Prompt(prompt.token_ids[: span.start], prompt.token_ids[end:], span.length)


def _to_messages(exchanges: Sequence[Exchange]) -> list[Message]:
    messages: list[Message] = []
    for exchange in exchanges:
        picture: tuple[Part, ...] = () if messages else (ImagePart(ANY_PICTURE),)
        words: tuple[Part, ...] = (TextPart(exchange.question),) if exchange.question is not None else ()
        messages.append(Message("user", picture + words))
        messages.append(Message("assistant", (TextPart(exchange.answer),)))
    return messages


def _num_equal(one: Sequence[int], other: Sequence[int]) -> int:
    """How many they begin with alike."""
    return sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1], zip(one, other, strict=False)))


def _to_example(pair: Pair, picture: int, head: Sequence[int], tail: Sequence[int], targets: Sequence[int]) -> Example:
    arrays = (np.array(ids, np.int32) for ids in (head, tail, targets))
    return Example(pair.where, picture, *arrays)


def read_first_stop_token(folder: Path) -> int:
    """Of those that generation_config.json names; hub checkpoints name the end of a turn first."""
    stop = read_json(folder, "generation_config.json").get("eos_token_id")
    first = stop[0] if isinstance(stop, list) and stop else stop
    if not isinstance(first, int):
        raise CheckpointError(f"{folder}: generation_config.json names no stop token", "base")
    return first
