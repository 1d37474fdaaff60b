"""A window that shows the newest picture: `PreviewWindow` here, the window itself in a process of its own.

So that no toolkit can hold a stream up, and because OpenCV's windows hang where PyAV is loaded.
"""

from __future__ import annotations

import os
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence

import cv2
import numpy as np

from videomamba_depth.utils.errors import UserError

_START_S = 30.0  # how long a window may take to open
_END_S = 2.0
_POLL_MS = 15
_MIN_HEIGHT_PX = 240  # of the window at first
_QUIT_KEYS = (ord("q"), 27)  # q, Esc
_OPENED, _WANTED = "opened", "wanted"  # what the window says, a line each; anything else: what keeps it from opening
_SIZE = struct.Struct("<II")  # height and width of the picture that follows


class PreviewWindow:
    """Show pictures while they come; q, Esc or closing the window closes it.

    A picture is sent only when the window has asked for one, others are left out: showing never waits.

    Args:
        command: of the window's process, see `main`; None: this module.

    Raises:
        UserError: there is no screen, or this build of OpenCV has no windows.
    """

    def __init__(self, title: str, command: Sequence[str] | None = None) -> None:
        if command is None:
            _check_screen()
            command = (sys.executable, "-m", __name__, title)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._messages: queue.Queue[str] = queue.Queue()
        self.closed = False
        self._wanted = False
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            first = self._messages.get(timeout=_START_S)
        except queue.Empty:
            first = "it does not open"
        if first != _OPENED:
            self.close()
            raise UserError(f"cannot open a preview window: {first or 'it closed at once'}; leave out preview=true")

    def wants(self) -> bool:
        """Return whether the window waits for a picture; also learns whether it was closed."""
        while not (self._wanted or self.closed or self._messages.empty()):
            message = self._messages.get()
            self._wanted, self.closed = message == _WANTED, message == ""
        return self._wanted

    def show(self, picture: np.ndarray) -> None:
        """Show a picture `[H, W, 3]` uint8 RGB; only after `wants` was true."""
        self._wanted = False
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(_SIZE.pack(*picture.shape[:2]) + np.ascontiguousarray(picture).data)
            self._process.stdin.flush()
        except OSError:
            self.closed = True

    def close(self) -> None:
        """Close the window."""
        self.closed = True
        try:
            self._process.communicate(timeout=_END_S)
        except (subprocess.TimeoutExpired, OSError, ValueError):
            self._process.kill()
            self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._messages.put(line.decode(errors="replace").strip())
        self._messages.put("")


def main() -> None:
    """Show the pictures that come through stdin until a person closes the window or they end."""
    title = sys.argv[1]
    os.environ.setdefault("QT_LOGGING_RULES", "*=false")
    try:
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
    except cv2.error as error:
        print(" ".join(str(error).split()), flush=True)
        return
    print(_OPENED, flush=True)
    pictures: queue.Queue[np.ndarray | None] = queue.Queue()
    threading.Thread(target=_receive, args=(pictures,), daemon=True).start()
    is_sized = False
    while True:
        try:
            picture = pictures.get_nowait()
        except queue.Empty:
            pass
        else:
            if picture is None:
                return
            if not is_sized:
                larger = max(1.0, _MIN_HEIGHT_PX / picture.shape[0])
                cv2.resizeWindow(title, round(picture.shape[1] * larger), round(picture.shape[0] * larger))
                is_sized = True
            cv2.imshow(title, picture[..., ::-1])
            print(_WANTED, flush=True)
        key = cv2.waitKey(_POLL_MS)
        if key & 0xFF in _QUIT_KEYS or (is_sized and cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) < 1):
            return


def _receive(pictures: queue.Queue[np.ndarray | None]) -> None:
    """Fetch pictures in a thread, so that the sender never waits for the toolkit; None at the end."""
    print(_WANTED, flush=True)
    while len(head := sys.stdin.buffer.read(_SIZE.size)) == _SIZE.size:
        height, width = _SIZE.unpack(head)
        data = sys.stdin.buffer.read(height * width * 3)
        pictures.put(np.frombuffer(data, np.uint8).reshape(height, width, 3))
    pictures.put(None)


def _check_screen() -> None:
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError("preview=true needs a screen: neither DISPLAY nor WAYLAND_DISPLAY is set; leave it out")


if __name__ == "__main__":
    main()
