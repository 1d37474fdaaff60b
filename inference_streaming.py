"""Stream a video through a student, frame by frame: `python inference_streaming.py checkpoint=… input=… output=…`.

See `videomamba_depth/commands/stream.py`; an installed package runs it as videomamba-depth stream.
"""

from videomamba_depth.commands.console import run_command

if __name__ == "__main__":
    run_command("stream")
