"""Depth in the browser, beside a file or a camera: `python scripts/serve.py checkpoint=…`, then open the address.

See `videomamba_depth/commands/serve.py`; an installed package runs it as videomamba-depth serve.
"""

from videomamba_depth.commands.console import run_command

if __name__ == "__main__":
    run_command("serve")
