"""Write docs/benchmarks.md: what this CPU shows, and what a GPU showed.

    python benchmarks/page.py                     # measures here, ten minutes on a quiet machine, and writes the page
    python benchmarks/page.py --only-write        # from what was measured before
    python benchmarks/page.py --only-write --gpu gpu.json      # with what `benchmarks/gpu.py --output gpu.json` found

What was measured lies in benchmarks/results/; no number of the page comes from anywhere else.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import gpu
import streaming

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", Path(__file__).parent / "results"
CLIP = "videomamba_depth/assets/clip.mp4"
RUNS = {  # file of results: arguments of benchmarks/streaming.py
    "small.json": ["--sizes", "266", "518", "--frames", "8"],
    "embedded.json": ["--checkpoint", "embedded", "--sizes", "112", "--video", CLIP],
}
HEAD = """# Benchmarks

Written by `python benchmarks/page.py` from files in `benchmarks/results/`, which hold more digits. Each table says
where and when it was measured. Times of other parts stand beside what they are times of: [optical flow](flow.md),
[the scan](kernels.md), [training](training.md), [labels](scaling.md).
"""


def main() -> None:
    """Measure and write."""
    options = _parse()
    RESULTS.mkdir(exist_ok=True)
    for name, arguments in {} if options.only_write else RUNS.items():
        found = streaming.measure(streaming.parser().parse_args([*arguments, "--device", "cpu"]))
        streaming.print_results(found)
        (RESULTS / name).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.gpu:
        shutil.copyfile(options.gpu, RESULTS / "gpu.json")
    PAGE.write_text(page(RESULTS), encoding="utf-8")


def page(results: Path) -> str:
    """Return the page, in Markdown, of a folder of results."""
    parts = [HEAD]
    for name, arguments in RUNS.items():
        found = _read(results / name)
        if found is not None:
            parts += [_streams(found, arguments)]
    return "\n".join([*parts, _gpu(_read(results / "gpu.json")), _peers()])


def _streams(found: dict[str, Any], arguments: list[str]) -> str:
    about = found["about"]
    lines = [
        f"## Streams on a CPU: {about['models']}\n",
        f"`python benchmarks/streaming.py {' '.join(arguments)}`\n",
        _where(about) + f" Whole frames, pixels to depth, in {about['clock']}, {about['threads']} thread,"
        f" {about['precision']}, all models in turn; load of the machine {about['load']}. Ratios are to the teacher's"
        " frame just before: median (quartiles).\n",
        "| px | model | ms | over the teacher |\n|---|---|---|---|",
        *(
            f"| {row['size']} | {row['model']} | {row['ms']:.0f} | {_ratio(row['over_teacher'])} |"
            for row in found["frames"]
        ),
        "\nWhere a frame's time goes, in %:\n",
        _shares(found["parts"], "size"),
    ]
    if "end_to_end" in found:
        rows = found["end_to_end"]
        lines += [
            f"\nFrom file to file ({rows[0]['video']} px; decoded, streamed, written side by side as H.264), one stage"
            " after the other:\n",
            "| model | ms | over the teacher | network, % | the rest, % |\n|---|---|---|---|---|",
        ]
        for row in rows:
            cells = (f"{row['ms']:.0f}", _ratio(row["over_teacher"]), f"{100 * row['network']:.0f}")
            lines.append(f"| {row['model']} | {' | '.join(cells)} | {100 - 100 * row['network']:.0f} |")
        lines += ["", _shares(rows, "video")]
    return "\n".join(lines) + "\n"


def _shares(rows: list[dict[str, Any]], what: str) -> str:
    parts = list(dict.fromkeys(part for row in rows for part in row["shares"]))
    lines = [f"| | | {' | '.join(parts)} |", "|" + "---|" * (len(parts) + 2)]
    for row in rows:
        cells = [f"{100 * row['shares'][part]:.1f}" if part in row["shares"] else "" for part in parts]
        lines.append(f"| {row[what]} | {row['model']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gpu(found: dict[str, Any] | None) -> str:
    lines = ["## On a GPU\n"]
    if found is None:
        return (
            lines[0]
            + "\n`python benchmarks/gpu.py --output gpu.json` has not run on a GPU yet; its dry run is a test.\n"
        )
    passed = sum(check["ok"] for check in found["checks"])
    lines.append(f"{_where(found['about'])} {passed} of {len(found['checks'])} checks against the CPU passed.")
    for check in found["checks"]:
        if not check["ok"]:
            lines.append(f"- not right: {check['what']}: {check['error']:.1e}, at most {check['most']:.0e}")
    lines += [f"- failed: {name}: {reason}" for name, reason in found["failed"].items()]
    lines += [f"- left out for want of time: {name}" for name in found["left_out"]]
    return "\n".join(lines) + f"\n\n```text\n{gpu.table({**found, 'peers': []}).strip()}\n```\n"


def _peers() -> str:
    lines = ["## As others have published\n", "Each by its own protocol, on its own machine; not to be pooled.\n"]
    lines.append("| model | frames, px | frames/s | GPU | how | source |\n|---|---|---|---|---|---|")
    for model, size, fps, device, what, source in gpu.PEERS:
        lines.append(f"| {model} | {size} | {fps:.0f} | {device} | {what} | {source} |")
    return "\n".join(lines) + "\n"


def _ratio(quartiles: list[float]) -> str:
    low, middle, high = quartiles
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _where(about: dict[str, Any]) -> str:
    names = [f"{key} {about[key]}" for key in ("torch", "transformers", "triton", "opencv") if key in about]
    return f"{about.get('machine', about.get('device'))}, {about['date']}, {', '.join(names)}."


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only-write", action="store_true", help="measure nothing")
    parser.add_argument("--gpu", type=Path, help="JSON file of benchmarks/gpu.py")
    return parser.parse_args()


if __name__ == "__main__":
    main()
