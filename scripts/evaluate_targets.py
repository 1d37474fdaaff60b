"""Judge training targets on worlds with exact depth: `python scripts/evaluate_targets.py --kinds moving`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from videomamba_depth.evaluation.hard_worlds import HARD_CONDITIONS
from videomamba_depth.evaluation.report import write_json, write_text
from videomamba_depth.evaluation.targets import KINDS, Rows, score_targets, targets_markdown
from videomamba_depth.flow.estimators import build_flow
from videomamba_depth.models.encoder_da import DepthAnythingEncoder


def main() -> None:
    """Score every world on one thread, print the table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=[*KINDS, *HARD_CONDITIONS])
    parser.add_argument("--family", default="courtyard", choices=["courtyard", "rooms"])
    parser.add_argument(
        "--seed", type=int, default=8_500_000_000, help="of the first world; none below 2**31 is ever trained on"
    )
    parser.add_argument("--videos", type=int, default=8, help="of each kind")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--teacher", default="embedded")
    parser.add_argument("--flow", default="dis")
    parser.add_argument("--cache", type=Path, default=Path("runs/fresh_worlds"))
    parser.add_argument("--output", type=Path, default=Path("runs/targets"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    encoder, flow = DepthAnythingEncoder.from_pretrained(args.teacher), build_flow(args.flow)
    results: dict[str, list[Rows]] = {}
    for kind in args.kinds:
        for seed in range(args.seed, args.seed + args.videos):
            rows = score_targets(kind, seed, args.family, encoder, flow, cache=args.cache, frames=args.frames)
            results.setdefault(kind, []).append(rows)
        print(targets_markdown({kind: results[kind]}), flush=True)
    text = targets_markdown(results)
    write_json({"family": args.family, "seed": args.seed, "videos": results}, args.output / f"{args.family}.json")
    print(text)
    print(f"wrote {write_text(args.output / f'{args.family}.md', text)}")


if __name__ == "__main__":
    main()
