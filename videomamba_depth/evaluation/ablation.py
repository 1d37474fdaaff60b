"""What ablations say: mean and spread over seeds of every change of the recipe, as numbers and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from videomamba_depth.evaluation.fresh_report import HEADINGS, KINDS

COLUMNS = (
    ("moving", "tge"), ("fast", "tge"), ("static", "tge"),
    ("moving", "abs_rel/video"), ("fast", "abs_rel/video"),
    ("moving", "edge_ratio"), ("fast", "edge_ratio"),
    ("fast", "abs_rel/fast_pixels"), ("moving", "lag"),
)  # fmt: skip
"""What the table shows of each row: kind of world and metric."""


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds of what is finite; NaN below one and below two values."""
    finite = np.array([v for v in values if v is not None and math.isfinite(v)])
    mean = float(finite.mean()) if len(finite) else math.nan
    return {"mean": mean, "std": float(finite.std(ddof=1)) if len(finite) > 1 else math.nan, "values": list(values)}


def summarise(
    kinds: Mapping[str, Any], rows: Mapping[str, Mapping[int, str]], reference: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return {row: {"change", "minus_recipe": {kind: {metric: `over_seeds`}}}}.

    Args:
        kinds: "kinds" of the JSON file of `scripts/evaluate_fresh.py`: changes against the teacher, mean over videos.
        rows: {row: {seed: name of the evaluated student}}.
        reference: the row that "minus_recipe" is the difference to, paired by seed, in points.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for row, students in rows.items():
        result[row] = {"change": {}, "minus_recipe": {}}
        for kind, summary in kinds.items():
            changes = summary["changes"]
            metrics = next(iter(changes.values()))
            own = {m: {seed: _value(changes, name, m) for seed, name in students.items()} for m in metrics}
            base = {m: {seed: _value(changes, name, m) for seed, name in rows[reference].items()} for m in metrics}
            result[row]["change"][kind] = {m: over_seeds(list(v.values())) for m, v in own.items()}
            result[row]["minus_recipe"][kind] = {
                m: over_seeds([v - base[m].get(seed, math.nan) for seed, v in values.items()])
                for m, values in own.items()
            }
    return result


def ablation_markdown(result: Mapping[str, Any]) -> str:
    """Return the report: one table per group, the recipe above each."""
    rows, groups, reference = result["rows"], result["groups"], result["reference"]
    parts = [
        "# Ablations\n",
        f"{result['about']}\n\nChange against the framewise teacher, mean ± standard deviation over seeds of the mean"
        " over videos; in brackets the difference to the recipe ± its standard error over seeds, paired by seed.\n",
    ]
    for group in dict.fromkeys(groups.values()):
        members = [row for row in rows if groups[row] == group and row != reference]
        if members:
            parts.append(f"\n## {group}\n\n{_table(rows, [reference, *members], reference)}")
    if result["failed"]:
        named = "; ".join(f"{name}: {reason}" for name, reason in result["failed"].items())
        parts.append(f"\nRuns that failed: {named}\n")
    return "\n".join(parts)


def _table(rows: Mapping[str, Any], names: Sequence[str], reference: str) -> str:
    columns = [(kind, metric) for kind, metric in COLUMNS if kind in rows[reference]["change"]]
    heads = [f"{HEADINGS[metric]}, {KINDS[kind]}" for kind, metric in columns]
    lines = ["| changed | seeds | " + " | ".join(heads) + " |", "|---|---:|" + "---:|" * len(heads)]
    for name in names:
        change, paired = rows[name]["change"], rows[name]["minus_recipe"]
        cells = [_cell(change[k][m], None if name == reference else paired[k][m]) for k, m in columns]
        seeds = max((len(change[k][m]["values"]) for k, m in columns), default=0)
        lines.append(f"| {name} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(change: Mapping[str, Any], paired: Mapping[str, Any] | None) -> str:
    if not math.isfinite(change["mean"]):
        return "–"
    text = _number(change["mean"], change["std"])
    if paired is not None and math.isfinite(paired["mean"]):
        num_seeds = sum(math.isfinite(v) for v in paired["values"])
        text += f" ({_number(paired['mean'], paired['std'] / num_seeds**0.5)})"
    return text.replace("-", "−")


def _number(mean: float, spread: float) -> str:
    decimals = 1 if abs(mean) >= 1 else 2
    return f"{mean:+.{decimals}f}" + (f" ± {spread:.{decimals}f}" if math.isfinite(spread) else "")


def _value(changes: Mapping[str, Any], name: str, metric: str) -> float:
    """Return the mean over videos; NaN where there is none (null in JSON)."""
    entry = changes.get(name, {}).get(metric)
    return math.nan if not entry or entry[0] is None else float(entry[0])
