"""Export one step of a student to ONNX: `python scripts/export_onnx.py runs/x/last depth.onnx`.

See `videomamba_depth/commands/export.py`; an installed package runs it as videomamba-depth export.
"""

from videomamba_depth.commands.console import run_command

if __name__ == "__main__":
    run_command("export")
