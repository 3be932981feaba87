"""Chooses the next token of each row: the greatest logit, or a draw from the row's filtered distribution.

Temperature, top_k and top_p have the meaning that transformers' logits warpers give them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deployments.types import SamplingParams

NOT_A_TOKEN = -1  # in place of an id where the logits are not finite
NUCLEUS_CANDIDATES = 256
# Beyond these float32 divides into nan, and nothing is left to change: the greatest token alone, or all alike.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-30, 1e30


def open_rng(sampling: SamplingParams, device: torch.device) -> torch.Generator | None:
    """The row's own source of chance, so that its answer does not hang on its neighbours; None for greedy rows."""
    if sampling.temperature == 0:
        return None
    rng = torch.Generator(device)
    if sampling.seed is None:
        rng.seed()
    else:
        rng.manual_seed(sampling.seed)
    return rng


def sample(
    logits: torch.Tensor, sampling: Sequence[SamplingParams], rngs: Sequence[torch.Generator | None]
) -> list[int]:
    """Next token ids of (B, vocab_size) logits; NOT_A_TOKEN for a row that holds nan or has no finite greatest value.

    Greedy rows cost one reduction over the batch. Waits for the device once.
    """
    greatest, ids = logits.max(dim=-1)
    for row, (params, rng) in enumerate(zip(sampling, rngs, strict=True)):
        if rng is not None:
            ids[row] = draw(filtered_logits(logits[row], params), rng)
    # The check is on the device, like all before it: a host-side one would wait once per row.
    chosen: list[int] = torch.where(torch.isfinite(greatest), ids, NOT_A_TOKEN).tolist()
    return chosen


def filtered_logits(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """(vocab_size,) logits after top_k, temperature and top_p; the greatest is 0, and -inf is ruled out.

    A constant taken off all logits changes no probability, and without it a low temperature makes all of them infinite.
    """
    logits = logits.float()
    if 0 < params.top_k < logits.shape[-1]:
        least = logits.topk(params.top_k).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)  # ties with the last one stay
    temperature = min(max(params.temperature, MIN_TEMPERATURE), MAX_TEMPERATURE)
    logits = (logits - logits.max()) / temperature
    if params.top_p < 1:
        logits = logits.masked_fill(~_nucleus(logits.softmax(dim=-1), params.top_p), -torch.inf)
    return logits


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Mask of the fewest most probable tokens that together reach `top_p`; always at least one."""
    # Sorting 50,000 values takes milliseconds on a CPU, and the nucleus is nearly always among the first few hundred.
    # On a GPU sorting is quick, and asking whether these suffice would make the host wait.
    if probabilities.device.type == "cpu" and probabilities.shape[-1] > NUCLEUS_CANDIDATES:
        candidates = probabilities.topk(NUCLEUS_CANDIDATES)
        if float(candidates.values.sum()) >= top_p:
            return _reaching(candidates.values, candidates.indices, probabilities, top_p)
    descending = probabilities.sort(descending=True, stable=True)
    return _reaching(descending.values, descending.indices, probabilities, top_p)


def _reaching(values: torch.Tensor, indices: torch.Tensor, probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    before = values.cumsum(dim=-1) - values  # what the more probable ones add up to
    keep = before < top_p
    keep[0] = True
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, indices, keep)


def draw(logits: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """One id from softmax(logits), as a scalar on the device.

    The race of exponentials (argmax of p / e, e ~ Exp(1)) is what torch.multinomial does for one draw; that one stops
    the whole CUDA context when a row holds nan. Each token has a draw of its own, so logits that differ in the last
    bits, as they do from batch to batch, still choose the same token.
    """
    race = torch.empty_like(logits).exponential_(generator=rng)
    return (logits.softmax(dim=-1) / race).argmax(dim=-1)
