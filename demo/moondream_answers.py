"""Asks a Moondream checkpoint in float32, greedily and one request at a time, through the family that serves it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from transformers import DynamicCache

from deployments.models.family import LanguageModel, Preprocessor, Prompt, PromptFormat, Rules, Tower
from deployments.models.registry import open_family
from deployments.types import Box, ImagePart, ImageRef, Message, Point, Task, TextPart

MAX_NEW_TOKENS = 96


@dataclass(slots=True)
class Reply:
    """What came of one request."""

    answer_ids: list[int] = field(default_factory=list)
    thought_ids: list[int] = field(default_factory=list)
    found: list[Box | Point] = field(default_factory=list)
    groundings: list[Point] = field(default_factory=list)
    answer: str = ""
    thought: str = ""


class Examinee:
    """A checkpoint and what it has seen; pictures have names."""

    def __init__(self, folder: Path) -> None:
        family = open_family("moondream")
        self.preprocessor: Preprocessor = family.open_preprocessor(folder)
        self.tower: Tower = family.open_tower(folder, "cpu", "float32")
        self.format: PromptFormat = family.open_prompt_format(folder)
        self.language: LanguageModel = family.open_language(folder, "cpu", "float32")
        self._seen: dict[str, torch.Tensor] = {}

    def show(self, name: str, picture: Image.Image) -> ImagePart:
        """Look at a picture; the part goes into messages about it."""
        self._seen[name] = self.tower.encode([self.preprocessor(picture.convert("RGB"))])[0]
        return ImagePart(ImageRef(name, picture.width, picture.height, 0, "image/png"))

    def do(self, task: Task, picture: ImagePart | None) -> Reply:
        """Do one task with a picture, or with none."""
        return self._generate(self.format.build([Message("user", (picture,) if picture else ())], task))

    def chat(self, turns: list[tuple[str, str]], question: str, picture: ImagePart | None) -> str:
        """Answer the last question of a conversation whose earlier turns are given; the picture came at some turn."""
        said = [text for turn in turns for text in turn]
        messages = [Message(("user", "assistant")[i % 2], (TextPart(text),)) for i, text in enumerate(said)]
        parts = (picture, TextPart(question)) if picture else (TextPart(question),)
        return self._generate(self.format.build([*messages, Message("user", parts)])).answer

    @torch.inference_mode()
    def _generate(self, prompt: Prompt) -> Reply:
        reply, cache = Reply(), DynamicCache()
        rules = self.language.open_rules(prompt, MAX_NEW_TOKENS)
        assert rules, "Moondream has rules for all that it does"
        length = len(prompt.token_ids)
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        mask[: prompt.num_mutual, : prompt.num_mutual] = True
        embeddings, positions = self._embed(prompt), torch.from_numpy(prompt.positions)[:, None]
        for step in range(2 * MAX_NEW_TOKENS):
            output = self.language.forward(embeddings, positions, cache, mask[None, None])
            assert output.hidden is not None
            fed = self._accept(rules, output.logits[0], output.hidden[0], reply)
            if fed is None:
                break
            embeddings, positions = fed, torch.tensor([[[prompt.next_position + step]]])
            mask = torch.ones(1, length + step + 1, dtype=torch.bool)
        reply.answer, reply.thought = self.format.decode(reply.answer_ids), self.format.decode(reply.thought_ids)
        return reply

    def _embed(self, prompt: Prompt) -> torch.Tensor:
        embeddings = self.language.embed(torch.tensor([prompt.token_ids])).clone()
        for span in prompt.images:
            rows = self.language.project(self._seen[span.image_id])
            embeddings[0, span.start : span.start + span.length] = rows
        for index, coordinates in prompt.places:
            embeddings[0, index] = self.language.embed_place(coordinates)
        return embeddings

    def _accept(self, rules: Rules, logits: torch.Tensor, hidden: torch.Tensor, reply: Reply) -> torch.Tensor | None:
        """Choose a token; returns the embedding (1, 1, D) to go on with, None at the end."""
        logits[list(rules.banned_token_ids())] = -torch.inf
        token_id = int(logits.argmax())
        ruling = rules.accept(token_id, hidden)
        reply.found += [ruling.found] if ruling.found else []
        reply.groundings += [ruling.grounding] if ruling.grounding else []
        if ruling.is_last:
            return None
        if ruling.kind == "answer":
            reply.answer_ids.append(token_id)
        elif ruling.kind == "thought":
            reply.thought_ids.append(token_id)
        if ruling.embedding is not None:
            return ruling.embedding[None, None]
        return self.language.embed(torch.tensor([[ruling.token_id]]))
