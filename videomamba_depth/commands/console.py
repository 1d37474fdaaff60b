"""`videomamba-depth COMMAND …`, and the same mains for the entry files of the repository."""

from __future__ import annotations

import gc
import sys
from importlib import import_module

from videomamba_depth.utils.errors import UserError, exit_on_user_error

PROGRAM = "videomamba-depth"
COMMANDS = {
    "train": "train a streaming student of a teacher, on videos without ground truth",
    "stream": "depth of a video, an image folder, a camera or a network stream, frame by frame",
    "precompute": "label a folder of videos once, so that training need not run the teacher",
    "evaluate": "score students beside their teacher and its filters: stability with its guards",
    "export": "write one step of a student as an ONNX file, and compare it",
    "push": "publish a finished run on the Hugging Face hub, with a model card",
    "serve": "a page in the browser that shows depth beside a file or the camera",
}
"""What each command does; it lies in the module of this folder that is named like it."""


def run_command(name: str) -> None:
    """Run a command on what the command line holds after the program's name."""
    gc.disable()  # looking for garbage among what is imported finds none, and takes a quarter of the time
    try:
        command = import_module(f"videomamba_depth.commands.{name}")
    finally:
        gc.freeze()  # nor is it looked for there later
        gc.enable()
    command.run()


def main() -> None:
    """Run `videomamba-depth COMMAND …`; without a command, say which ones there are."""
    given = sys.argv[1:]
    if not given or given[0] in ("-h", "--help", "help"):
        print(overview())
        return
    with exit_on_user_error():
        if given[0] not in COMMANDS:
            raise UserError(f"there is no command '{given[0]}'; there are {', '.join(COMMANDS)}")
    sys.argv = [f"{PROGRAM} {given[0]}", *given[1:]]
    run_command(given[0])


def overview() -> str:
    """Return the page of `videomamba-depth --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {about}" for name, about in COMMANDS.items()]
    return "\n".join(
        [
            "Streaming, temporally stable video depth, distilled from a frozen Depth Anything teacher.",
            "",
            f"usage: {PROGRAM} COMMAND [KEY=VALUE ...]",
            "",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help explains a command. To see depth at once, with the student that is shipped:",
            f"  {PROGRAM} stream checkpoint=embedded input=clip.mp4 output=out/",
        ]
    )


if __name__ == "__main__":
    main()
