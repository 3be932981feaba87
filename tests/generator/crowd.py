"""A runner without threads and clocks under a crowd of any kind: who comes, waits, computes and leaves is chance's, and
what must hold is looked at after every step.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from generator.letters import PLACEHOLDER, LetterPrompts, features_of, picture
from transformers import DynamicCache

from deployments.generator.answer_text import AnswerText
from deployments.generator.continuation import extend
from deployments.generator.prefix_tree import NO_MATCH, Content, Match, Node
from deployments.generator.prompt_contents import PICTURE, answer_contents, contents_of, realm_of
from deployments.generator.runner import BatchRunner
from deployments.generator.sampling import NOT_A_TOKEN
from deployments.generator.sequence import Marks
from deployments.generator.sequence import Sequence as Request
from deployments.generator.simple import SimpleRunner
from deployments.generator.thoughts import Thoughts
from deployments.models.family import ImageSpan, Output, Prompt
from deployments.types import ImageFeatures, SamplingParams

CONTEXT_TOKENS = 160
TOWER = "tower"
PICTURES = {name: picture(name, width) for name, width in {"cat": 30, "dog": 30, "owl": 9, "broken": 12}.items()}
FEATURES = {name: features_of(image) for name, image in PICTURES.items()}
FEATURES["broken"][7] = np.nan


@dataclass(frozen=True)
class Question:
    """Tokens, and pictures by name."""

    parts: tuple[int | str, ...]
    tenant: str = "a"
    is_mutual: bool = False  # all up to the end of its first picture, or a third of it
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int = 12
    answered: tuple[int, ...] = ()  # tokens of the answer that came from elsewhere

    def build(self) -> Prompt:
        ids: list[int] = []
        spans: list[ImageSpan] = []
        for part in self.parts:
            if isinstance(part, int):
                ids.append(part)
            else:
                spans.append(ImageSpan(part, len(ids), len(FEATURES[part])))
                ids += [PLACEHOLDER] * len(FEATURES[part])
        end = spans[0].start + spans[0].length if spans else len(ids) // 3
        positions = np.arange(len(ids), dtype=np.int64)[None]
        return Prompt(tuple(ids), positions, len(ids), tuple(spans), num_mutual=end if self.is_mutual else 0)


class Reader:
    is_reachable = True


@dataclass
class Flaky:
    """A language model of which some passes fail after they have written; the next ones do not."""

    inner: Any
    chance: random.Random
    share: float = 0.03
    num_failed: int = 0
    num_safe: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, *arguments: Any) -> Output:
        output: Output = self.inner.run(*arguments)
        if not self.num_safe and self.chance.random() < self.share:
            self.num_failed += 1
            self.num_safe = 8
            raise RuntimeError("the device hiccups")
        self.num_safe = max(self.num_safe - 1, 0)
        return output


@dataclass
class AnyPace:
    chance: random.Random

    def tokens(self, num_decoding: int) -> int:
        return self.chance.choice([16, 17, 40, 64])

    def observe(self, duration_s: float, num_decoding: int, num_prompt_tokens: int) -> None:
        pass


class Crowd:
    def __init__(
        self, language: Any, seed: int, *, num_slots: int, num_blocks: int, share_failing: float = 0.0
    ) -> None:
        self.chance = random.Random(seed)
        self.language = language
        self.flaky = Flaky(language, self.chance, share_failing)
        block_bytes = language.num_layers * 2 * language.num_kv_heads * 16 * language.head_dim * 4
        self.runner = BatchRunner(self.flaky, num_slots, CONTEXT_TOKENS, 64, num_blocks * block_bytes)  # type: ignore[arg-type]
        self.runner._pace = AnyPace(self.chance)  # type: ignore[assignment]
        self.preparing: list[tuple[int, Question, Match]] = []
        self.live: dict[Request, Question] = {}
        self.finished: list[Question] = []
        self.tally: Counter[str] = Counter()
        self.mutual: dict[str, Sequence[Content]] = {}  # beginnings that see themselves, by realm
        self._number = 0
        self._expected: dict[Question, list[int]] = {}
        self._states: dict[tuple[str, tuple[Content, ...]], torch.Tensor] = {}

    # ------------------------------------------------------------------ what happens

    def arrive(self, question: Question) -> None:
        """Look up what is remembered, which is pinned while the encoder is waited for."""
        realm, contents = look_up(question)
        self.mutual[realm] = contents[: question.build().num_mutual]
        match = self.runner.prefix.match(realm, contents, least=len(self.mutual[realm]))
        self.preparing.append((self._number, question, match))
        self._number += 1

    def submit(self, index: int) -> None:
        number, question, match = self.preparing.pop(index)
        sequence = to_sequence(question, number, match)
        sequence.priority = self.chance.choice([0, 0, 0, 1])
        self.live[sequence] = question

    def give_up(self, index: int) -> None:
        self.runner.prefix.unpin(self.preparing.pop(index)[2])
        self.tally["cancelled while encoding"] += 1

    def cancel(self, sequence: Request) -> None:
        self.tally[f"cancelled in {sequence.stage}"] += 1
        self._remove(sequence)

    def step(self) -> None:
        step = self.runner.step(sorted(self.live, key=lambda sequence: sequence.number))
        self.tally["reused"] += step.num_reused_tokens
        for sequence, token_id in step.tokens:
            self._take(sequence, token_id)
        for sequence, error in step.failures:
            assert str(error) == "the device hiccups", error
            self.tally["failed"] += 1
            self._remove(sequence)

    def _take(self, sequence: Request, token_id: int) -> None:
        question = self.live[sequence]
        assert (token_id == NOT_A_TOKEN) == ("broken" in question.parts)
        if token_id == NOT_A_TOKEN:
            self.tally["broken"] += 1
            self._remove(sequence)
            return
        sequence.accept(token_id, LetterPrompts.stop_token_ids, 0.0)
        expected = self.expected(question)
        assert sequence.token_ids == expected[: len(sequence.token_ids)], question
        if sequence.is_finished:
            assert len(sequence.token_ids) == len(expected)
            self.tally["finished"] += 1
            self.tally["gone on with"] += bool(question.answered)
            self.finished.append(replace(question, answered=()))
            self._remove(sequence)

    def _remove(self, sequence: Request) -> None:
        self.runner.release(sequence)
        del self.live[sequence]

    def expected(self, question: Question) -> list[int]:
        """By the slow twin, alone and without a cut."""
        question = replace(question, answered=())
        if question not in self._expected:
            runner, sequence = SimpleRunner(self.language), to_sequence(question)
            while not sequence.is_finished:
                [(_, token_id)] = runner.step([sequence]).tokens
                sequence.accept(token_id, LetterPrompts.stop_token_ids, 0.0)
            self._expected[question] = sequence.token_ids
        return self._expected[question]

    # ------------------------------------------------------------------ what must hold

    def check(self) -> None:
        held = [sequence.slot for sequence in self.live if sequence.slot is not None]
        assert len(set(held)) == len(held) <= self.runner.num_slots
        for slot in set(range(self.runner.num_slots)) - set(held):
            assert self.runner._cache.is_clear(slot)
        for sequence in self.live:
            if sequence.slot is not None:
                assert sequence.match is NO_MATCH, "what was laid down is pinned no more"
                assert not self.runner._cache.slot(sequence.slot)[..., len(self._written(sequence)) :, :].any()
        tree = self.runner.prefix._tree
        pinned = Counter(node for match in self._matches() for node in match.nodes)
        assert {node: node.num_pins for node in tree._by_use if node.num_pins} == pinned
        assert [problem for problem in tree.problems() if not problem.endswith("pins")] == []
        if not self.live and not self.preparing:
            assert self.runner.problems() == []

    def check_states(self) -> None:
        """K/V of all slots and of all remembered blocks are those of their contents, computed anew."""
        for sequence in self.live:
            if sequence.slot is not None and "broken" not in self.live[sequence].parts:
                contents = self._written(sequence)
                states = self.runner._cache.slot(sequence.slot)[..., : len(contents), :]
                self._check_equal(states, sequence.realm, contents)
                self.tally["slots compared"] += 1
        for node, realm in self.runner.prefix._tree._by_use.items():
            contents = tuple(content for part in _path(node) for content in part.key)
            assert not any(content[:2] == (PICTURE, "broken") for content in contents)
            self._check_equal(self.runner.prefix._blocks[node.block][..., : len(node.key), :], realm, contents)
            self.tally["blocks compared"] += 1

    def _matches(self) -> Iterator[Match]:
        yield from (match for _, _, match in self.preparing)
        yield from (sequence.match for sequence in self.live)

    def _written(self, sequence: Request) -> tuple[Content, ...]:
        """What the K/V in its slot are of."""
        return (
            *sequence.contents[: sequence.num_prefilled],
            *answer_contents(sequence.token_ids[len(sequence.answered) : -1]),
        )

    def _check_equal(self, states: torch.Tensor, realm: str, contents: tuple[Content, ...]) -> None:
        """`states` of the last ones of `contents`."""
        mutual, stop = self.mutual[realm], len(contents)
        whole = max(contents, tuple(mutual), key=len)  # what sees itself can only be computed whole
        if (realm, whole) not in self._states:
            self._states[realm, whole] = compute(self.language, whole, len(mutual))
        expected = self._states[realm, whole][..., stop - states.shape[-2] : stop, :]
        torch.testing.assert_close(states, expected, rtol=1e-3, atol=1e-3)


def look_up(question: Question) -> tuple[str, Sequence[Content]]:
    prompt = extend(question.build(), question.answered)
    contents = contents_of(prompt, dict.fromkeys(PICTURES, TOWER))
    return realm_of(prompt, question.tenant, contents), contents


def to_sequence(question: Question, number: int = 0, match: Match = NO_MATCH) -> Request:
    prompt, decode = question.build(), LetterPrompts().decode
    realm, contents = look_up(question)
    needed = {span.image_id for span in prompt.images if span.start + span.length > match.num_tokens}
    return Request(
        number=number,
        request_id=f"r{number}",
        prompt=prompt,
        features={name: ImageFeatures(FEATURES[name], "float32", "tower", 0.0, TOWER) for name in sorted(needed)},
        pulled=frozenset(needed),
        encode_source=None,
        sampling=question.sampling,
        max_new_tokens=question.max_new_tokens,
        max_positions=CONTEXT_TOKENS,
        answer=AnswerText(decode, ()),
        thoughts=Thoughts(decode),
        stream=Reader(),  # type: ignore[arg-type]
        marks=Marks(0.0),
        answered=question.answered,
        contents=contents,
        realm=realm,
        match=match,
        num_prefilled=match.num_tokens,
    )


def compute(language: Any, contents: Sequence[Content], num_mutual: int) -> torch.Tensor:
    """(layers, 2, kv_heads, S, head_dim) of tokens that nobody has computed before."""
    rows = [
        torch.from_numpy(FEATURES[content[1]][content[2] % len(FEATURES[content[1]])])  # type: ignore[index,operator]
        if content[0] == PICTURE
        else language.embed(torch.tensor([[content[1]]]))[0, 0]
        for content in contents
    ]
    mask = torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
    mask[:num_mutual, :num_mutual] = True
    cache = DynamicCache()
    language.forward(torch.stack(rows)[None], torch.arange(len(rows))[None, None], cache, mask[None, None])
    return torch.stack([torch.cat([layer.keys, layer.values]) for layer in cache.layers])


def _path(node: Node) -> list[Node]:
    return [*(_path(node.parent) if node.parent is not None else []), node]
