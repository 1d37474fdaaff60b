"""Depth in the browser, beside a file or a camera: `python scripts/serve.py checkpoint=…`, then open the address.

The story is `videomamba_depth/commands/serve.py`, which an installed package runs as videomamba-depth serve.
"""

from videomamba_depth.commands.console import run_command

if __name__ == "__main__":
    run_command("serve")
