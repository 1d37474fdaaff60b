#!/usr/bin/env python
"""Adapt a student to one rendered video and score it there, before and after, beside its target.

python scripts/evaluate_adaptation.py --kind moving --seed 9700000000 --work-dir runs/adaptation

The video is written as pictures, trained on as any would be (experiment=adapt), and scored on the same pictures, whose
depth is known exactly: `shipped`, or `before` for what --start names, is the student before, `adapted` after,
`geometry` the target from both sides in time.
"""

import argparse
import logging
import subprocess
import sys
from pathlib import Path
from typing import get_args

import cv2

from videomamba_depth.data.synthetic import SceneFamily
from videomamba_depth.evaluation.datasets.world_kinds import KINDS
from videomamba_depth.evaluation.datasets.worlds import WorldSet
from videomamba_depth.flow.estimators import build_flow
from videomamba_depth.utils.arguments import path_argument, whole
from videomamba_depth.utils.errors import exit_on_user_error
from videomamba_depth.utils.logger import configure_logging

log = logging.getLogger("evaluate_adaptation")


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="moving", choices=sorted(KINDS))
    parser.add_argument("--world", default="courtyard", choices=get_args(SceneFamily))
    parser.add_argument("--seed", type=whole(0, 2**40), default=9_700_000_000)
    parser.add_argument("--frames", type=whole(8, 100_000), default=96)
    parser.add_argument("--start", default="embedded", help="the student to go on from, of the shipped teacher")
    parser.add_argument("--work-dir", type=path_argument, default=Path("runs/adaptation"))
    parser.add_argument("overrides", nargs="*", help="of train.py, such as trainer.steps=200")
    args = parser.parse_args(argv)
    configure_logging()
    kind = args.kind
    worlds = WorldSet(
        world=args.world, seed=args.seed, kinds=(kind,), videos=1, frames=args.frames, long_videos=1,
        long_frames=args.frames,
    )  # fmt: skip
    cache, place = args.work_dir / "cache", args.work_dir / f"{args.world}-{kind}-{args.seed}"
    (source,) = worlds.sources(cache, build_flow("dis"), "dis")
    pictures = place / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for number, rgb in enumerate(source.load().frames):
        cv2.imwrite(str(pictures / f"{number:05d}.png"), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    run = place / "adapt"
    named = ["experiment=adapt", f"data.root={pictures}", f"run_dir={run}", f"model.start={args.start}"]
    run_command("train", *named, *args.overrides)
    scored = [f"world={args.world}", f"seed={args.seed}", f"kinds=[{kind}]", "videos=1", f"frames={args.frames}"]
    scored += ["long_videos=1", f"long_frames={args.frames}", "max_depth_m=30"]
    before = "shipped" if args.start == "embedded" else "before"
    students = f"checkpoint=[{before}:{args.start},adapted:{run}/last]"
    options = ["targets=true", "palindrome=false", "cut_frames=0", "max_frames=null", "html.enabled=false"]
    named = [students, "precision=float32", "name=adaptation", f"output={place}", f"cache={cache}", *options]
    run_command("evaluate", *named, *(f"synthetic.{one}" for one in scored))


def run_command(name: str, *arguments: str) -> None:
    """Run one of our commands; where it fails, end with its exit status."""
    done = subprocess.run([sys.executable, "-m", f"videomamba_depth.commands.{name}", *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
