"""Asks a checkpoint questions about freshly drawn pictures and prints the share answered exactly, by kind.

    python demo/evaluate.py demo/checkpoints/smolvlm

Answers come from plain `transformers` `generate`, greedy, in float32; a question counts when the whole answer is right.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import wordings as say
from conversations import ALL_KINDS, Exchange, Talker, make_name
from held_out import HELD_OUT_NAMES, HELD_OUT_QUESTIONS
from model import EXPANDED_IMAGE, IMAGE, image_processor
from pool import Pool, draw_pool, join, normalized
from questions import describe
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import Idefics3ForConditionalGeneration, TokenizersBackend

BATCH = 64


@dataclass(slots=True)
class Examinee:
    """A loaded checkpoint and the pictures it is asked about."""

    model: Idefics3ForConditionalGeneration
    tokenizer: TokenizersBackend
    pool: Pool

    def answers(self, conversations: list[list[Exchange]]) -> list[str]:
        """Answer the last question of each conversation; earlier answers are taken as given."""
        found = [""] * len(conversations)
        for has_picture in (False, True):
            chosen = [i for i, talk in enumerate(conversations) if (_picture(talk) is not None) == has_picture]
            chosen.sort(key=lambda i: len(conversations[i]))
            for start in range(0, len(chosen), BATCH):
                batch = chosen[start : start + BATCH]
                for index, answer in zip(batch, self._answer([conversations[i] for i in batch]), strict=True):
                    found[index] = answer
        return found

    def _answer(self, conversations: list[list[Exchange]]) -> list[str]:
        prompts = [self._prompt(talk) for talk in conversations]
        inputs = dict(self.tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt"))
        pictures = [picture for talk in conversations if (picture := _picture(talk)) is not None]
        if pictures:
            inputs["pixel_values"] = normalized(self.pool.pixels[pictures])[:, None]
        inputs.pop("token_type_ids", None)
        ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=48)
        texts = self.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _prompt(self, talk: list[Exchange]) -> str:
        messages = [message for turn in talk for message in messages_of(turn)][:-1]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(text).replace(IMAGE, EXPANDED_IMAGE)


def messages_of(turn: Exchange) -> list[dict[str, object]]:
    """The exchange as the chat template takes it."""
    picture = [{"type": "image"}] if turn.picture is not None else []
    user: dict[str, object] = {"role": "user", "content": [*picture, {"type": "text", "text": turn.user}]}
    return [user, {"role": "assistant", "content": [{"type": "text", "text": turn.answer}]}]


def _picture(talk: list[Exchange]) -> int | None:
    return next((turn.picture for turn in talk if turn.picture is not None), None)


def load_examinee(folder: Path, pool: Pool) -> Examinee:
    """Load a checkpoint folder in float32."""
    model = Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return Examinee(model, TokenizersBackend.from_pretrained(folder), pool)


def exam(talker: Talker, count: int) -> dict[str, list[list[Exchange]]]:
    """The conversations to be asked, by the name of their row in the table."""
    questions = {kind: [ending_in(talker, kind) for _ in range(count)] for kind in ALL_KINDS}
    questions["other question, held out"] = [_about(talker, text) for text in HELD_OUT_QUESTIONS for _ in range(4)]
    return questions


def ending_in(talker: Talker, kind: str) -> list[Exchange]:
    """A conversation of one to ten exchanges whose last question is of the given kind."""
    while True:
        talker.weights = dict.fromkeys(ALL_KINDS, 1.0)
        talk = talker.conversation(int(talker.rng.choice([1, 1, 2, 3, 5, 8, 10])))
        if talk[-1].kind == kind and talk[-1].is_learned:
            return talk


def _about(talker: Talker, text: str) -> list[Exchange]:
    talk = talker.conversation(int(talker.rng.integers(0, 4)))
    return [*talk, Exchange("other question", text, say.ONLY_SHAPES)]


def introductions(examinee: Examinee, talker: Talker) -> list[bool]:
    """Hold the README's conversation with the model's own answers; whether all four were right, for every name."""
    names = [*HELD_OUT_NAMES, *(make_name(talker.rng) for _ in range(48))]
    shown = [i for i, scene in enumerate(examinee.pool.scenes) if scene][: len(names)]
    talks, right = [list[Exchange]() for _ in names], [True] * len(names)
    for turn in range(4):
        asked = [_introduction(examinee, name, picture)[turn] for name, picture in zip(names, shown, strict=True)]
        found = examinee.answers([[*talk, question] for talk, question in zip(talks, asked, strict=True)])
        for index, (question, answer) in enumerate(zip(asked, found, strict=True)):
            talks[index].append(Exchange(question.kind, question.user, answer, question.picture))
            right[index] &= answer == question.answer
    return right


def _introduction(examinee: Examinee, name: str, picture: int) -> list[Exchange]:
    scene = examinee.pool.scenes[picture]
    assert scene
    return [
        Exchange("name told", f"Hello, my name is {name}", f"Hello {name}! Nice to meet you."),
        Exchange("name asked", "What is my name?", f"Your name is {name}."),
        Exchange("describe", "What do you see in this image?", describe(scene), picture),
        Exchange("describe", "Can you describe the image again?", describe(scene)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Print how many questions of each kind a checkpoint answers exactly.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo/checkpoints/smolvlm"))
    parser.add_argument("--count", type=int, default=250, help="questions of each kind")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the fresh pictures and conversations")
    parser.add_argument("--mistakes", type=int, default=0, help="print so many wrong answers of each kind")
    options = parser.parse_args()
    console = Console()
    pool = join(list(draw_pool(2048, options.seed, image_processor())))
    examinee = load_examinee(options.folder, pool)
    talker = Talker(pool.scenes, np.random.default_rng(options.seed))
    table = Table("question", "asked", "exact", "share")
    for name, talks in track(exam(talker, options.count).items(), "asking", console=console):
        found = examinee.answers(talks)
        wrong = [(talk[-1], answer) for talk, answer in zip(talks, found, strict=True) if talk[-1].answer != answer]
        _add_row(table, name, len(talks), len(talks) - len(wrong))
        for question, answer in wrong[: options.mistakes]:
            console.print(
                f"{question.user!r} ({question.picture}): {answer!r}, not {question.answer!r}", highlight=False
            )
    right = introductions(examinee, talker)
    _add_row(table, "introduction, all four turns", len(right), sum(right))
    console.print(table)


def _add_row(table: Table, name: str, asked: int, exact: int) -> None:
    table.add_row(name, str(asked), str(exact), f"{exact / asked:.1%}")


if __name__ == "__main__":
    main()
