"""An answer that goes on when its generator dies: another replica takes the tokens that there are and generates on.

Where there are none yet, it does not.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from dataclasses import replace

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from deployments.errors import Overloaded, PartUnavailable
from deployments.ingress.deadline import Deadline
from deployments.types import Chunk, GenerateRequest, Generator

log = logging.getLogger(__name__)

MAX_TRIES = 5  # for one chunk; the turn's deadline bounds them all
LONGEST_WAIT_S = 2.0


async def go_on(generator: Generator, request: GenerateRequest, deadline: Deadline) -> AsyncGenerator[Chunk, None]:
    """As generator.stream, which is asked again, for what is left, where it raises PartUnavailable or breaks off."""
    answer = _Continued(generator, request, deadline)
    try:
        is_whole = False
        while not is_whole:
            chunk = await answer.next_chunk()
            is_whole = chunk.finish_reason is not None
            yield chunk
        await answer.finish()
    finally:
        await answer.close()


class _Continued:
    def __init__(self, generator: Generator, request: GenerateRequest, deadline: Deadline) -> None:
        self._generator = generator
        self._request = request
        self._deadline = deadline
        self._token_ids = list(request.answered)
        self._num_tokens = len(request.answered)
        self._chunks: AsyncGenerator[Chunk, None] | None = None
        self._has_died = bool(request.answered)  # somebody began this answer

    async def next_chunk(self) -> Chunk:
        """Raises what the generator raises, PartUnavailable only after several tries."""
        try:
            return await self._pull()
        except (PartUnavailable, Overloaded) as error:
            if not self._can_go_on(error):
                raise
            log.warning("an answer goes on after %d tokens, perhaps on another replica: %s", self._num_tokens, error)
        # Not around every pull: the books that a retry keeps cost more than a chunk does.
        retrying = AsyncRetrying(
            retry=retry_if_exception(self._can_go_on),
            stop=stop_after_attempt(MAX_TRIES),
            wait=wait_random_exponential(multiplier=0.05, max=LONGEST_WAIT_S),
            reraise=True,
        )
        return await retrying(self._pull)

    async def finish(self) -> None:
        """Let the generator come to its own end: closing it here would count as a cancellation there."""
        assert self._chunks is not None
        await anext(self._chunks, None)

    async def close(self) -> None:
        chunks, self._chunks = self._chunks, None
        if chunks is not None:
            await chunks.aclose()

    async def _pull(self) -> Chunk:
        if self._chunks is None:
            left = replace(self._request, answered=tuple(self._token_ids), timeout_s=self._deadline.left_s)
            self._chunks = self._generator.stream(left)
        try:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                raise PartUnavailable("the generator stopped in the middle of the answer")
        except PartUnavailable:
            self._has_died = True
            await self.close()
            raise
        except Overloaded:
            await self.close()
            raise
        self._token_ids.extend(chunk.token_ids)
        self._num_tokens += chunk.num_tokens
        return chunk

    def _can_go_on(self, error: BaseException) -> bool:
        if self._num_tokens > len(self._token_ids):
            return False  # nothing says which tokens there are: a hosted model
        if self._num_tokens == 0:
            return False  # its picture or prompt may be what kills replicas: it is not shown to the next one
        # A replica that is asked first and has no room is for the client to hear of.
        return isinstance(error, PartUnavailable) or (self._has_died and isinstance(error, Overloaded))
