"""Writes pictures and what is said about them as files, the way `retina train-projector` reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from conversations import Exchange, Talker
from PIL import Image
from pool import Pool

DESCRIBED_SHARE = 0.6  # of the pictures are described first, the others get a question of any kind
NAMED_SHARE = 0.5  # of the conversations tell a name as well: a projector that never saw one would blot it out


def write_pairs(folder: Path, pool: Pool, talker: Talker, pictures: Iterable[int]) -> None:
    """Write a PNG and a line of pairs.jsonl for each of the pictures; what stands there already is written anew."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [_pair(folder, pool, talker, picture) for picture in pictures]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "pairs.jsonl").write_text(text, encoding="utf-8")


def _pair(folder: Path, pool: Pool, talker: Talker, picture: int) -> dict[str, object]:
    name = f"{picture:05}.png"
    Image.fromarray(pool.pixels[picture].permute(1, 2, 0).numpy()).save(folder / name)
    exchanges = talker.shown(picture, DESCRIBED_SHARE, NAMED_SHARE)
    return {"image": name, "conversations": [turn for exchange in exchanges for turn in _turns(exchange)]}


def _turns(exchange: Exchange) -> list[dict[str, str]]:
    return [{"role": "user", "content": exchange.user}, {"role": "assistant", "content": exchange.answer}]
