"""transformers' own `generate` on the same checkpoint: what the engine is measured against."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Generated:
    ttft_ms: float  # of all rows at once
    step_ms: float  # of every further token
    tokens_per_s: float  # of all rows together, prompts included in the time


@dataclass(frozen=True, slots=True)
class Generate:
    model: PreTrainedModel

    @classmethod
    def load(cls, checkpoint: Path, dtype: str, device: str) -> Generate:
        """The whole model, tower included, as people load it."""
        import torch
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
        return cls(model.to(device).eval())

    def measure(self, batch: int, num_prompt_tokens: int, num_new_tokens: int) -> Generated:
        """Prompts of words alone: features would only be put in place of some of their embeddings."""
        import torch

        vocabulary = self.model.config.get_text_config().vocab_size
        size = (batch, num_prompt_tokens)
        ids = torch.randint(vocabulary // 2, vocabulary, size, device=self.model.device)
        self._generate(ids, 2)
        first_s = self._generate(ids, 1)
        all_s = self._generate(ids, num_new_tokens)
        return Generated(
            ttft_ms=round(first_s * 1000, 2),
            step_ms=round((all_s - first_s) / (num_new_tokens - 1) * 1000, 3),
            tokens_per_s=round(batch * num_new_tokens / all_s, 1),
        )

    def _generate(self, ids: torch.Tensor, num_new_tokens: int) -> float:
        """Seconds."""
        import torch

        began = time.perf_counter()
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_new_tokens,
                min_new_tokens=num_new_tokens,
                do_sample=False,
            )
        out.cpu()  # waits for the device
        assert out.shape == (len(ids), ids.shape[1] + num_new_tokens), out.shape
        return time.perf_counter() - began
