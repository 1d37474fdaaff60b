"""Label a folder of videos once: `python scripts/precompute_teacher_depth.py root=... cache=...`.

See `videomamba_depth/commands/precompute.py`; an installed package runs it as videomamba-depth precompute.
"""

from videomamba_depth.commands.console import run_command

if __name__ == "__main__":
    run_command("precompute")
