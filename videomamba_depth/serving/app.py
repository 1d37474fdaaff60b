"""The page: a file or a camera in the browser, depth beside it."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from videomamba_depth.serving.depth_view import DepthView, message
from videomamba_depth.serving.guests import GuestVideo, read_picture
from videomamba_depth.serving.same_origin import SameOrigin
from videomamba_depth.serving.settings import ServeSettings, Slots
from videomamba_depth.streaming.colour import Colouriser
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.errors import UserError

_STATIC = Path(__file__).parent / "static"
_FULL = "all places are taken: as many videos and cameras are running as this server allows; try again later"
_AGAIN, _REFUSED = 1013, 1008  # close codes of a WebSocket


class Refusal(Exception):
    """An HTTP status and what to tell a person."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class DepthPage:
    """What the routes share: the model by way of `new_stream`, whose turn it is, and the free places.

    Args:
        new_stream: returns a stream of its own state over the shared model.
    """

    def __init__(self, new_stream: Callable[[], DepthStream], settings: ServeSettings) -> None:
        self.settings, self.slots = settings, Slots(settings.max_streams)
        self._new_stream, self._turn = new_stream, threading.Lock()
        self._depth_kind = new_stream().depth_kind.value

    def new_view(self) -> DepthView:
        """Return what one connection needs."""
        with self._turn:
            stream = self._new_stream()
        return DepthView(stream, self._turn, self.settings.colour_map, self.settings.longest_px)

    async def about(self, _: Request) -> JSONResponse:
        """Return what the page shows before anything runs."""
        ramp = Colouriser(self.settings.colour_map).ramp(16)
        limits = {"max_upload_mb": self.settings.max_upload_mb, "longest_px": self.settings.longest_px}
        return JSONResponse({"depth_kind": self._depth_kind, "colours": ramp, **limits})

    async def video(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Take a file as the body of a request and answer with one message per frame, as fast as they are read."""
        request = Request(scope, receive)
        if not self.slots.take():
            await JSONResponse({"error": _FULL}, 503)(scope, receive, send)
            return
        try:
            with tempfile.TemporaryDirectory(prefix="videomamba-depth-") as folder:
                path = Path(folder) / "upload"
                await self._take_upload(request, path)
                try:
                    frames = await anyio.to_thread.run_sync(GuestVideo, path, self.settings.max_pixels)
                except UserError as error:
                    raise Refusal(415, str(error)) from error
                await self._answer(iter(frames), receive, send)
        except Refusal as error:
            await JSONResponse({"error": str(error)}, error.status)(scope, receive, send)
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
            view = await anyio.to_thread.run_sync(self.new_view)
            while True:
                data = await self._next_picture(socket)
                rgb = await anyio.to_thread.run_sync(read_picture, data, self.settings.max_pixels)
                now_s = time.monotonic()
                await socket.send_bytes(
                    await anyio.to_thread.run_sync(lambda: view.show(rgb, now_s, with_frame=False))  # noqa: B023
                )
        except UserError as error:
            await _part(socket, _REFUSED, str(error))
        except WebSocketDisconnect:
            pass
        finally:
            self.slots.give_back()

    async def _take_upload(self, request: Request, path: Path) -> None:
        limit, too_large = self.settings.max_upload_bytes, f"the file is larger than {self.settings.max_upload_mb:g} MB"
        if int(request.headers.get("content-length") or 0) > limit:
            raise Refusal(413, too_large)
        size = 0
        try:
            with anyio.fail_after(self.settings.upload_s), path.open("wb") as file:
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > limit:
                        raise Refusal(413, too_large)
                    file.write(chunk)
        except TimeoutError as error:
            raise Refusal(408, f"the upload took longer than {self.settings.upload_s:g} s") from error
        except OSError as error:
            raise Refusal(507, "the server has no room for this file") from error
        if size == 0:
            raise Refusal(400, "the file is empty")

    async def _answer(self, frames: Iterator[Any], receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/octet-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        messages = _messages(frames, await anyio.to_thread.run_sync(self.new_view))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_when_gone, receive, tasks.cancel_scope)
            while body := await anyio.to_thread.run_sync(next, messages, b""):
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            tasks.cancel_scope.cancel()

    async def _next_picture(self, socket: WebSocket) -> bytes:
        with anyio.move_on_after(self.settings.idle_s):
            event = await socket.receive()
            if event["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(event.get("code", 1000))
            data = event.get("bytes")
            if data is None:
                raise UserError("send pictures, as binary messages")
            if len(data) > self.settings.max_picture_bytes:
                raise UserError(f"a picture is larger than {self.settings.max_picture_mb:g} MB")
            return bytes(data)
        raise UserError(f"no picture came for {self.settings.idle_s:g} s")


def build_app(new_stream: Callable[[], DepthStream], settings: ServeSettings, *, loopback: bool = True) -> Starlette:
    """Return the page as an ASGI application.

    Args:
        new_stream: returns a stream over a model that all streams share.
        loopback: serve requests for names of this machine alone, see `SameOrigin`.
    """
    page = DepthPage(new_stream, settings)

    async def index(_: Request) -> FileResponse:
        return FileResponse(_STATIC / "index.html")

    routes = [
        Route("/", index),
        Route("/api/about", page.about),
        Route("/api/video", _AsgiEndpoint(page.video), methods=["POST"]),
        WebSocketRoute("/api/camera", page.camera),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(SameOrigin, loopback=loopback)])


class _AsgiEndpoint:
    """Routes take objects, unlike functions, as they are: what is inside sees scope, receive and send."""

    def __init__(self, function: Any) -> None:
        self._function = function

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        await self._function(scope, receive, send)


def _messages(frames: Iterator[Any], view: DepthView) -> Iterator[bytes]:
    """Yield a message per frame, and one that ends them: with the count, or with what went wrong."""
    try:
        for frame in frames:
            yield view.show(frame.rgb, frame.timestamp_s, with_frame=True)
        yield message({"end": True, "frames": view.num_frames})
    except UserError as error:
        yield message({"end": True, "frames": view.num_frames, "error": str(error)})


async def _cancel_when_gone(receive: Any, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _part(socket: WebSocket, code: int, text: str) -> None:
    await socket.send_json({"error": text})
    await socket.close(code)
