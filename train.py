"""Train a streaming student: `python train.py [group=choice] [key=value]`; the README lists examples.

See `videomamba_depth/commands/train.py`; an installed package runs it as videomamba-depth train.
"""

from videomamba_depth.commands.console import run_command

if __name__ == "__main__":
    run_command("train")
