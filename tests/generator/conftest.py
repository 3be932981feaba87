"""A tiny random Llama, transformers' answers from it, and engines over it that are checked and closed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from generator.letters import (
    PLACEHOLDER,
    VOCAB_SIZE,
    WAIT_S,
    WIDTH,
    LetterEncoder,
    LetterPrompts,
    Turnstile,
    WatchedLanguage,
    features_of,
)

from deployments.config import GeneratorConfig
from deployments.types import GenerateRequest

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from deployments.generator.engine import Engine


@pytest.fixture(scope="session")
def llama() -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
    )
    torch.manual_seed(5)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:  # wild enough that answers vary
                weight.normal_(std=1.0 if "embed" in name else 1.5 / weight.shape[1] ** 0.5)
    return model


@pytest.fixture
def language(llama: LlamaForCausalLM) -> WatchedLanguage:
    from deployments.models.causal import CausalLanguage

    return WatchedLanguage(CausalLanguage(llama))


@pytest.fixture
def turnstile(language: WatchedLanguage) -> Turnstile:
    language.hook = Turnstile()
    return language.hook


@pytest.fixture
def reference(llama: LlamaForCausalLM) -> Callable[[GenerateRequest], list[int]]:
    """Token ids that transformers' own greedy `generate` gives, stop tokens left out."""
    import torch

    def generate(request: GenerateRequest) -> list[int]:
        prompts = LetterPrompts()
        prompt = prompts.build(request.messages, request.task)
        with torch.inference_mode():
            input_ids = torch.tensor([prompt.token_ids])
            embeddings = llama.get_input_embeddings()(input_ids).clone()
            rows = [features_of(image) for message in request.messages for image in message.images]
            if rows:
                places = torch.tensor(prompt.token_ids) == PLACEHOLDER
                embeddings[0, places] = torch.from_numpy(np.concatenate(rows))
            output = llama.generate(
                input_ids,
                inputs_embeds=embeddings,
                attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
                repetition_penalty=request.sampling.repetition_penalty or 1.0,
                max_new_tokens=request.sampling.max_new_tokens,
                do_sample=False,
                eos_token_id=sorted(prompts.stop_token_ids),
                pad_token_id=0,
            )
        ids: list[int] = output[0, input_ids.shape[1] :].tolist()
        return ids[:-1] if ids[-1] in prompts.stop_token_ids else ids

    return generate


OpenEngine = Callable[..., "Engine"]


@pytest.fixture
def whole_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes as many prompt tokens as `prefill_chunk_tokens` says, however long it takes."""
    monkeypatch.setattr("deployments.generator.chunk_pace.ChunkPace.tokens", lambda pace, num_decoding: pace.max_tokens)


@pytest.fixture
def open_test_engine(language: WatchedLanguage) -> Iterator[OpenEngine]:
    """open_test_engine(encoder=, prompts=, **config keys); each engine must be idle and sound when the test ends."""
    from deployments.generator.engine import Engine

    engines: list[Engine] = []

    def open_engine(encoder: Any = None, prompts: Any = None, open_mask: Any = None, **config: Any) -> Engine:
        defaults: dict[str, Any] = {"num_slots": 4, "max_context_tokens": 400, "prefill_chunk_tokens": 64}
        section = GeneratorConfig.model_validate(defaults | config)
        parts = (language, prompts or LetterPrompts(), encoder or LetterEncoder())
        engine = Engine(*parts, section, model="tiny", open_mask=open_mask)
        engines.append(engine)
        return engine

    yield open_engine
    for engine in engines:
        idle = engine.wait_idle(WAIT_S)
        problems = engine.check()
        engine.close()
        assert idle
        assert problems == ()
