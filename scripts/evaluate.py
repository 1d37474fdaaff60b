"""Score students beside their teacher and its filters: `python scripts/evaluate.py checkpoint=...`.

The story is `videomamba_depth/commands/evaluate.py`, which an installed package runs as videomamba-depth evaluate.
"""

from videomamba_depth.commands.console import run_command

if __name__ == "__main__":
    run_command("evaluate")
