"""CPU time of `scripts/evaluate.py`, of several versions in turns: the first time, and when the student alone is new.

    python benchmarks/evaluation_cost.py . -- checkpoint=embedded synthetic.videos=1 synthetic.frames=32
    python benchmarks/evaluation_cost.py . ../v0.1.0 --rounds 3 -- checkpoint=embedded input=clip.mp4 max_frames=32

Every tree is a checkout of the repository. CPU time of all threads, since a clock on the wall measures what else runs;
the least of all rounds. "start" prints the config alone: imports, and what there is before the first checkpoint. The
new student is the same with another memory, which a tree without `memory` cannot have.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

CASES = {"start": ["--cfg", "job"], "first": [], "new student": ["memory=[2.0]"], "nothing new": ["memory=[2.0]"]}


def cpu_s(tree: Path, arguments: Sequence[str]) -> float:
    """Return the CPU time, in seconds, of one run of a tree's evaluation; NaN where it fails."""
    paths = [str(tree), str(tree / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "scripts/evaluate.py", *arguments], cwd=tree, env=environment, capture_output=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        return float("nan")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print one line per tree."""
    own, _, arguments = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args(own.split())
    found: dict[Path, dict[str, list[float]]] = {tree.resolve(): {} for tree in options.trees}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for case, more in CASES.items():
                for number, (tree, times) in enumerate(found.items()):
                    has_cache = "cache:" in (tree / "configs" / "evaluate.yaml").read_text(encoding="utf-8")
                    if not has_cache and "memory=[2.0]" in more:
                        continue
                    places = [f"output={folder}/{number}", *([f"cache={folder}/cache{number}"] if has_cache else [])]
                    times.setdefault(case, []).append(cpu_s(tree, [*arguments.split(), *places, *more]))
    for tree, times in found.items():
        print(f"{tree.name}: " + ", ".join(f"{case} {min(values):.1f} s" for case, values in times.items()))


if __name__ == "__main__":
    main()
