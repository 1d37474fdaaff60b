"""The page: a file or a camera in the browser, depth beside it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, MutableMapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from videomamba_depth.serving.camera import CameraSession
from videomamba_depth.serving.decoder import Decoder, open_decoder
from videomamba_depth.serving.depth_view import DepthView, Turns
from videomamba_depth.serving.messages import message
from videomamba_depth.serving.same_origin import SameOrigin
from videomamba_depth.serving.settings import ServeSettings, Slots
from videomamba_depth.serving.uploads import unnamed_file
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.color import Colorizer
from videomamba_depth.utils.errors import UserError

_STATIC = Path(__file__).parent / "static"
_FULL = "all places are taken: as many videos and cameras are running as this server allows; try again later"
_AGAIN, _REFUSED = 1013, 1008  # close codes of a WebSocket


class Refusal(Exception):
    """An HTTP status and what to tell a person."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.response = JSONResponse({"error": text}, status)


class DepthPage:
    """What the routes share: the model by way of `new_stream`, whose turn it is, and the free places.

    Args:
        new_stream: returns a stream of its own state over the shared model.
    """

    def __init__(self, new_stream: Callable[[], DepthStream], settings: ServeSettings) -> None:
        self.settings, self.slots = settings, Slots(settings.max_streams)
        self._new_stream, self._model = new_stream, Turns()
        self._depth_kind = new_stream().depth_kind.value

    async def new_view(self) -> DepthView:
        """Return what one connection needs."""
        stream = await self._model.run(self._new_stream)
        return DepthView(stream, self._model, self.settings.color)

    def close(self) -> None:
        """Start nothing any more."""
        self._model.close()

    async def about(self, _: Request) -> JSONResponse:
        """Return what the page shows before anything runs."""
        ramp = Colorizer(self.settings.color.map).ramp(16)
        limits = {"max_upload_mb": self.settings.max_upload_mb, "longest_px": self.settings.longest_px}
        return JSONResponse({"depth_kind": self._depth_kind, "colors": ramp, **limits})

    async def video(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Take a file as the body of a request and answer with one message per frame, as fast as they are read."""
        if not self.slots.take():
            await JSONResponse({"error": _FULL}, 503)(scope, receive, send)
            return
        try:
            with unnamed_file() as (file, path):
                await self._take_upload(Request(scope, receive), file)
                async with open_decoder(self.settings, (file, path)) as decoder, anyio.create_task_group() as tasks:
                    tasks.start_soon(_cancel_when_gone, receive, tasks.cancel_scope)
                    await self._answer(decoder, scope, receive, send)
                    tasks.cancel_scope.cancel()
        except Refusal as refusal:
            await refusal.response(scope, receive, send)
        except UserError as error:
            await Refusal(503, str(error)).response(scope, receive, send)
        except OSError:
            await Refusal(507, "the server has no room for this file").response(scope, receive, send)
        except ClientDisconnect:
            pass
        finally:
            self.slots.give_back()

    async def camera(self, socket: WebSocket) -> None:
        """Answer each JPEG with a message; one state from the first to the last."""
        await socket.accept()
        if not self.slots.take():
            await _part(socket, _AGAIN, _FULL)
            return
        try:
            views: list[DepthView] = []

            async def answer(data: bytes) -> bytes:
                picture = await decoder.decode(data)
                views[:] = views or [await self.new_view()]
                return await views[0].show(picture, time.monotonic(), with_frame=False)

            async with open_decoder(self.settings) as decoder:
                reason = await CameraSession(socket, self.settings, answer).run()
        except UserError as error:
            reason = str(error)
        finally:
            self.slots.give_back()
        if reason:
            await _part(socket, _REFUSED, reason)

    async def _take_upload(self, request: Request, file: IO[bytes]) -> None:
        limit, too_large = self.settings.max_upload_bytes, f"the file is larger than {self.settings.max_upload_mb:g} MB"
        if int(request.headers.get("content-length") or 0) > limit:
            raise Refusal(413, too_large)
        size = 0
        try:
            with anyio.fail_after(self.settings.upload_s):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > limit:
                        raise Refusal(413, too_large)
                    file.write(chunk)
            file.flush()
        except TimeoutError as error:
            raise Refusal(408, f"the upload took longer than {self.settings.upload_s:g} s") from error
        if size == 0:
            raise Refusal(400, "the file is empty")

    async def _answer(self, decoder: Decoder, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        messages = self._messages(decoder, await self.new_view())
        try:
            first = await anext(messages)  # what cannot be shown at all is refused with a status
        except UserError as error:
            await Refusal(415, str(error)).response(scope, receive, send)
            return
        headers = [(b"content-type", b"application/octet-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for body in messages:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _messages(self, decoder: Decoder, view: DepthView) -> AsyncIterator[bytes]:
        """Yield a message per frame, and one that ends them: with the count, or with what went wrong.

        Raises:
            UserError: what went wrong before the first one.
        """
        end: dict[str, Any] = {"end": True}
        try:
            while (picture := await decoder.next_frame()) is not None:
                yield await view.show(picture, picture.time_s, with_frame=True)
        except UserError as error:
            if view.num_frames == 0:
                raise
            end["error"] = str(error)
        yield message({**end, "frames": view.num_frames})


def build_app(
    new_stream: Callable[[], DepthStream],
    settings: ServeSettings,
    *,
    loopback: bool = True,
    allowed_hosts: Iterable[str] = (),
    framed_by: Iterable[str] = (),
) -> Starlette:
    """Return the page as an ASGI application.

    Args:
        new_stream: returns a stream over a model that all streams share.
        loopback, allowed_hosts, framed_by: under which names and in which frames the page is served, see `SameOrigin`.
    """
    page = DepthPage(new_stream, settings)

    async def index(_: Request) -> FileResponse:
        return FileResponse(_STATIC / "index.html")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        page.close()

    routes = [
        Route("/", index),
        Route("/api/about", page.about),
        Route("/api/video", _AsgiEndpoint(page.video), methods=["POST"]),
        WebSocketRoute("/api/camera", page.camera),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    guard = Middleware(SameOrigin, loopback=loopback, allowed_hosts=tuple(allowed_hosts), framed_by=tuple(framed_by))
    app = Starlette(routes=routes, middleware=[guard], lifespan=lifespan)
    app.state.page = page
    return app


class _AsgiEndpoint:
    """Routes take objects, unlike functions, as they are: what is inside sees scope, receive and send."""

    def __init__(self, function: Any) -> None:
        self._function = function

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        await self._function(scope, receive, send)


async def _cancel_when_gone(receive: Any, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _part(socket: WebSocket, code: int, text: str) -> None:
    with suppress(WebSocketDisconnect):
        await socket.send_json({"error": text})
        await socket.close(code)
