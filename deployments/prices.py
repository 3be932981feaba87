"""What an answer costs: its tokens at the prices of the model that gave it. Pure; all sums are decimal."""

from __future__ import annotations

from decimal import Decimal

from deployments.config import PriceConfig, RetinaConfig
from deployments.types import Usage

PER_TOKENS = 1_000_000  # prices are for so many
SHOWN_DIGITS = 15  # significant ones: a binary floating-point number gives so many back as they were


def cost_of_answer(config: RetinaConfig, model: str, usage: Usage) -> Decimal | None:
    """None for a model without prices."""
    prices = config.model(model).prices
    return None if prices is None else cost(usage, prices)


def cost(usage: Usage, prices: PriceConfig) -> Decimal:
    """Every token is charged once: by its kind, text or image, or as reused where those have a price of their own.

    `usage` does not say how many of the reused tokens were image tokens. Of all that is possible, what costs least is
    charged.
    """
    image_price = prices.prompt if prices.image is None else prices.image
    reused_price = Decimal(0) if prices.reused is None else prices.reused
    reused = 0 if prices.reused is None else usage.reused_tokens
    texts = usage.prompt_tokens - usage.image_tokens
    images_are_dearer = image_price > prices.prompt
    reused_images = min(reused, usage.image_tokens) if images_are_dearer else max(0, reused - texts)
    total = (
        (texts - (reused - reused_images)) * prices.prompt
        + (usage.image_tokens - reused_images) * image_price
        + reused * reused_price
        + usage.completion_tokens * prices.completion
    )
    return total / PER_TOKENS


def to_json_number(amount: Decimal | None) -> float | None:
    """What JSON writes with the amount's own digits, so that 0.1 is 0.1; of 15 significant digits at most."""
    return None if amount is None else float(f"{amount:.{SHOWN_DIGITS}g}")
