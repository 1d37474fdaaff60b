"""Score students beside their teacher and its filters: `python scripts/evaluate.py checkpoint=...`.

See `videomamba_depth/commands/evaluate.py`; an installed package runs it as videomamba-depth evaluate.
"""

from videomamba_depth.commands.console import run_command

if __name__ == "__main__":
    run_command("evaluate")
