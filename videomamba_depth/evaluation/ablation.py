"""What ablations say: mean and spread over seeds of every change of the recipe, as numbers and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from videomamba_depth.evaluation.datasets.world_kinds import KINDS
from videomamba_depth.evaluation.report import change_title

COLUMNS = (
    ("moving", "tge"), ("fast", "tge"), ("static", "tge"),
    ("moving", "abs_rel/video"), ("fast", "abs_rel/video"),
    ("moving", "edge_ratio"), ("fast", "edge_ratio"),
    ("fast", "abs_rel/fast_pixels"), ("moving", "lag"),
)  # fmt: skip
"""What the table shows of each variant: kind of world and metric."""


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds of what is finite; NaN below one and below two values."""
    finite = np.array([v for v in values if v is not None and math.isfinite(v)])
    mean = float(finite.mean()) if len(finite) else math.nan
    return {"mean": mean, "std": float(finite.std(ddof=1)) if len(finite) > 1 else math.nan, "values": list(values)}


def summarize(
    groups: Mapping[str, Any], variants: Mapping[str, Mapping[int, str]], reference: str
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return {variant: {"change", "minus_recipe": {group: {metric: `over_seeds`}}}}.

    Args:
        groups: "groups" of the JSON file of `scripts/evaluate.py`: changes against the teacher, mean over clips.
        variants: {variant of the recipe: {seed: name of the evaluated student}}.
        reference: the variant that "minus_recipe" is the difference to, paired by seed, in points.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for variant, students in variants.items():
        result[variant] = {"change": {}, "minus_recipe": {}}
        for group, summary in groups.items():
            changes = summary["changes"]
            metrics = dict.fromkeys([*next(iter(changes.values())), *(metric for _, metric in COLUMNS)])
            own = {m: {seed: _value(changes, name, m) for seed, name in students.items()} for m in metrics}
            base = {m: {seed: _value(changes, name, m) for seed, name in variants[reference].items()} for m in metrics}
            result[variant]["change"][group] = {m: over_seeds(list(v.values())) for m, v in own.items()}
            result[variant]["minus_recipe"][group] = {
                m: over_seeds([v - base[m].get(seed, math.nan) for seed, v in values.items()])
                for m, values in own.items()
            }
    return result


def ablation_markdown(result: Mapping[str, Any]) -> str:
    """Return the report: one table per group, the recipe above each."""
    variants, groups, reference = result["variants"], result["groups"], result["reference"]
    parts = [
        "# Ablations\n",
        f"{result['about']}\n\nChange against the framewise teacher, mean ± standard deviation over seeds of the mean"
        " over videos; in brackets the difference to the recipe ± its standard error over seeds, paired by seed. Loss:"
        " of the training, mean over the last fifth of its steps; comparable between runs of one objective.\n",
    ]
    for group in dict.fromkeys(groups.values()):
        members = [name for name in variants if groups[name] == group and name != reference]
        if members:
            parts.append(f"\n## {group}\n\n{_table(result, [reference, *members])}")
    if result["failed"]:
        named = "; ".join(f"{name}: {reason}" for name, reason in result["failed"].items())
        parts.append(f"\nRuns that failed: {named}\n")
    return "\n".join(parts)


def _table(result: Mapping[str, Any], names: Sequence[str]) -> str:
    variants, reference = result["variants"], result["reference"]
    columns = [(kind, metric) for kind, metric in COLUMNS if kind in variants[reference]["change"]]
    heads = [f"{change_title(metric)}, {KINDS[kind].title}" for kind, metric in columns]
    lines = ["| changed | seeds | loss | " + " | ".join(heads) + " |", "|---|---:|---:|" + "---:|" * len(heads)]
    for name in names:
        change, paired, loss = variants[name]["change"], variants[name]["minus_recipe"], result["losses"][name]
        cells = [f"{loss['mean']:.4f} ± {loss['std']:.4f}".removesuffix(" ± nan")]
        cells += [_cell(change[k][m], None if name == reference else paired[k][m]) for k, m in columns]
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
    """Return the mean over clips; NaN where there is none (null in JSON)."""
    entry = changes.get(name, {}).get(metric)
    return math.nan if not entry or entry[0] is None else float(entry[0])
