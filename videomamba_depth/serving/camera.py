"""A camera on the page: pictures in, depth out, over one WebSocket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

from videomamba_depth.serving.settings import ServeSettings
from videomamba_depth.utils.errors import UserError

_AHEAD = 4  # pictures that may wait for their answer


class CameraSession:
    """Answers every picture of one client in turn, and ends at once when the client goes.

    Args:
        answer: returns the message that answers a picture; may raise UserError.
    """

    def __init__(
        self,
        socket: WebSocket,
        settings: ServeSettings,
        answer: Callable[[bytes], Awaitable[bytes]],
    ) -> None:
        self._socket, self._settings, self._message_for = socket, settings, answer
        self._put, self._take = anyio.create_memory_object_stream[bytes](_AHEAD)

    async def run(self) -> str:
        """Return why the session ends: one line for the client, or "" if the client has gone."""
        reasons = []

        async def first_of(function: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
            try:
                await function()
            except (UserError, WebSocketDisconnect) as error:
                reasons.append(str(error) if isinstance(error, UserError) else "")
            scope.cancel()

        with self._put, self._take:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(first_of, self._listen, tasks.cancel_scope)
                tasks.start_soon(first_of, self._answer, tasks.cancel_scope)
        return reasons[0]

    async def _listen(self) -> None:
        """Take what comes, also while the model works: only so is it noticed that the client has gone."""
        limit = self._settings.max_picture_bytes
        while True:
            event = await self._socket.receive()
            if event["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(event.get("code", 1000))
            data = event.get("bytes")
            if data is None:
                raise UserError("send pictures, as binary messages")
            if len(data) > limit:
                raise UserError(f"a picture is larger than {self._settings.max_picture_mb:g} MB")
            try:
                self._put.send_nowait(bytes(data))
            except anyio.WouldBlock:
                raise UserError("pictures come faster than they are answered: wait for each answer") from None

    async def _answer(self) -> None:
        while True:
            with anyio.move_on_after(self._settings.idle_s) as waiting:
                data = await self._take.receive()
            if waiting.cancelled_caught:
                raise UserError(f"no picture came for {self._settings.idle_s:g} s")
            await self._socket.send_bytes(await self._message_for(data))
