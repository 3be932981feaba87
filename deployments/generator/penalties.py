"""Makes tokens less likely that the answer already holds, as OpenAI's presence_penalty and frequency_penalty do."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Discount:
    """How much each token that one answer holds counts against its being said again. The prompt plays no part.

    A list of tokens, not a row of the vocabulary, as in repetition.py.
    """

    def __init__(self, presence: float, frequency: float, *, max_tokens: int, device: torch.device) -> None:
        """At most `max_tokens` will be added."""
        self._presence, self._frequency = presence, frequency
        self._places: dict[int, int] = {}  # of the tokens in the two below
        self._counts: list[int] = []
        self._token_ids = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self._amounts = torch.zeros(max_tokens, device=device)

    @property
    def token_ids(self) -> torch.Tensor:
        """(num_said,) int64, each once."""
        return self._token_ids[: len(self._places)]

    @property
    def amounts(self) -> torch.Tensor:
        """(num_said,) float32, for each of `token_ids`."""
        return self._amounts[: len(self._places)]

    def add(self, token_id: int) -> None:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._counts):
            self._counts.append(0)
            self._token_ids[place] = token_id
        self._counts[place] += 1
        self._amounts[place] = self._amount(place)

    def add_all(self, token_ids: Sequence[int]) -> None:
        """The same at once, for many."""
        for token_id in token_ids:
            place = self._places.setdefault(token_id, len(self._places))
            self._counts[place : place + 1] = [self._counts[place] + 1 if place < len(self._counts) else 1]
        self.token_ids[:] = torch.tensor(list(self._places))
        self.amounts[:] = torch.tensor([self._amount(place) for place in range(len(self._counts))])

    def _amount(self, place: int) -> float:
        return self._presence + self._frequency * self._counts[place]


def take_off(logits: torch.Tensor, discounts: Sequence[Discount | None]) -> None:
    """Lower (B, vocab_size) `logits`, which are contiguous, in place; all rows at once, and none without a discount."""
    flat, vocab_size = logits.view(-1), logits.shape[-1]
    rows = [(row, discount) for row, discount in enumerate(discounts) if discount is not None]
    if rows:
        places = torch.cat([discount.token_ids + row * vocab_size for row, discount in rows])
        flat[places] -= torch.cat([discount.amounts for _, discount in rows])
