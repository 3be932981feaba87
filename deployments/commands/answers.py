"""An answer in the terminal as it comes, and how it was made."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from deployments.commands.terminal import errors, printable, say, write

if TYPE_CHECKING:
    from deployments.client.service_client import TaskEvent, TaskReplyBody
    from deployments.ingress.schemas import TimingsBody, UsageBody
    from deployments.ingress.task_replies import BoxBody, PointBody

PLACE_WIDTH = 8


async def show_task(events: AsyncGenerator[TaskEvent, None], *, quiet: bool) -> TaskReplyBody:
    """Writes texts to stdout and thoughts to stderr, or nothing; returns the whole reply, the last event."""
    from deployments.client.service_client import Thought
    from deployments.ingress.schemas import ChunkEvent
    from deployments.ingress.task_replies import BoxBody, MadeFields, PointBody

    num_found, thinks = 0, False
    async with aclosing(events):
        async for event in events:
            if isinstance(event, MadeFields):
                break
            if quiet:
                continue
            if isinstance(event, Thought):
                thinks = True
                errors.print(printable(event.text), style="dim", end="", markup=False, soft_wrap=True)
            elif isinstance(event, ChunkEvent):
                if thinks:
                    errors.print()
                    thinks = False
                write(event.text)
            elif isinstance(event, BoxBody | PointBody):
                _show_place(event, with_heading=num_found == 0)
                num_found += 1
        else:
            raise AssertionError("events of a task end with its reply or raise")
    return event


def _show_place(place: BoxBody | PointBody, *, with_heading: bool) -> None:
    fields = place.model_dump()
    if with_heading:
        write("".join(f"{name:>{PLACE_WIDTH}}" for name in fields) + "\n")
    write("".join(f"{value:>{PLACE_WIDTH}.4f}" for value in fields.values()) + "\n")


def show_timings(usage: UsageBody, timings: TimingsBody) -> None:
    """One line on stderr."""
    say(describe(usage, timings))


def describe(usage: UsageBody, timings: TimingsBody) -> str:
    after_first = usage.completion_tokens - 1
    speed = f", {after_first / timings.decode_ms * 1000:,.0f} tokens/s" if timings.decode_ms > 0 < after_first else ""
    parts = [
        f"first token {timings.first_token_ms:,.0f} ms",
        f"{usage.completion_tokens} tokens{speed}",
        f"prompt {usage.prompt_tokens} tokens, {usage.reused_tokens} of them reused",
    ]
    if timings.encode_source is not None:
        parts.append(f"picture {usage.image_tokens} tokens from {timings.encode_source} in {timings.encode_ms:,.0f} ms")
    return " · ".join(parts)
