"""One terminal's conversation: asks, shows answers as they come, and stops them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.commands.answers import show_timings
from deployments.commands.interrupts import Left, on_interrupt
from deployments.commands.requests import to_request
from deployments.commands.service import Service
from deployments.commands.terminal import read_picture, say, show_error, write
from deployments.errors import RetinaError

if TYPE_CHECKING:
    from deployments.ingress.schemas import ChatReply

STOP_WITHIN_S = 5.0  # when the person leaves at once


@dataclass(slots=True)
class Talk:
    service: Service
    model: str | None  # None: the session's, or the default
    session_id: str | None  # None: a new one with the next question
    sampling: Mapping[str, object]
    as_json: bool = False
    with_timings: bool = False
    _image_id: str | None = None  # shown with the next question
    _stream_id: str | None = None  # of the answer under way
    _wants_stop: bool = False  # by Ctrl-C, perhaps before the stream has a name
    _stopping: list[asyncio.Task[None]] = field(default_factory=list)  # begun by Ctrl-C

    async def show(self, path: Path) -> None:
        """Raises InvalidRequest and InvalidImage."""
        picture = await self.service.client.add_image(await asyncio.to_thread(read_picture, path))
        self._image_id = picture.id

    async def use(self, model: str) -> None:
        await self.service.use(model)
        self.model = model

    def begin_anew(self) -> None:
        self.session_id = None

    async def ask(self, question: str) -> bool:
        """Print the answer as it comes; False if Ctrl-C stopped it. A second one raises Left."""
        self._stopping.clear()
        self._stream_id, self._wants_stop = None, False
        answering = asyncio.ensure_future(self._answer(question))
        loop, num_interrupts = asyncio.get_running_loop(), 0

        def interrupt() -> None:
            nonlocal num_interrupts
            num_interrupts += 1
            loop.call_soon(self._stop if num_interrupts == 1 else answering.cancel)

        with on_interrupt(interrupt):
            try:
                await answering
            except asyncio.CancelledError:
                if num_interrupts == 0:
                    raise
                write("\n")
                say("stopped")
            finally:
                answering.cancel()
                self._stream_id = None  # what ends in the instant that it is interrupted is not to be stopped
                await self._finish_stopping()
        if num_interrupts > 1:
            raise Left
        return num_interrupts == 0

    async def _answer(self, question: str) -> None:
        from deployments.ingress.schemas import ChatReply, ChatRequest, ChunkEvent, StartEvent

        fields = {"message": question, "session_id": self.session_id, "model": self.model, "image_id": self._image_id}
        asked = to_request(ChatRequest, {**fields, **self.sampling})
        async with contextlib.aclosing(self.service.client.stream_chat(asked)) as events:
            async for event in events:
                if isinstance(event, StartEvent):
                    self.session_id, self._stream_id = event.session_id, event.stream_id
                    if self._wants_stop:
                        self._stop()
                elif isinstance(event, ChunkEvent) and not self.as_json:
                    write(event.text)
                elif isinstance(event, ChatReply):
                    self._end(event)
        self._image_id = None

    def _end(self, reply: ChatReply) -> None:
        if self.as_json:
            print(reply.model_dump_json())
        else:
            write("\n")
        if reply.finish_reason == "cancelled":
            say("stopped; what was said until then is kept as the answer")
        if self.with_timings:
            show_timings(reply.usage, reply.timings)

    def _stop(self) -> None:
        """The service ends the stream once it has a name, and its end comes as that of any answer."""
        self._wants_stop = True
        if self._stream_id is not None and not self._stopping:
            self._stopping.append(asyncio.ensure_future(self.service.client.stop(self._stream_id)))

    async def _finish_stopping(self) -> None:
        for stopping in self._stopping:
            try:
                await asyncio.wait_for(stopping, STOP_WITHIN_S)
            except TimeoutError:
                say("the service did not say that it stopped")
            except RetinaError as error:
                show_error(error)
