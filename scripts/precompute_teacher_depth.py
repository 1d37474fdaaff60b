"""Label a folder of videos once: `python scripts/precompute_teacher_depth.py root=... cache=...`.

The story is `videomamba_depth/commands/precompute.py`, which an installed package runs as videomamba-depth precompute.
"""

from videomamba_depth.commands.console import run_command

if __name__ == "__main__":
    run_command("precompute")
