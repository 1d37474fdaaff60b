"""The former name of `python scripts/evaluate.py preset=held_out`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    print("scripts/evaluate_fresh.py is now scripts/evaluate.py preset=held_out", file=sys.stderr)
    if not any(argument.startswith(("preset=", "split=")) for argument in sys.argv):
        sys.argv.insert(1, "preset=held_out")
    sys.argv[0] = str(Path(__file__).with_name("evaluate.py"))
    runpy.run_path(sys.argv[0], run_name="__main__")
