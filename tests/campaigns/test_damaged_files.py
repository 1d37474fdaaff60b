"""Damaged runs, checkpoints, caches, saved streams, logs and worlds: refused in one line, or as if undamaged.

    pytest -m slow tests/campaigns/test_damaged_files.py -s        # prints the table

VIDEOMAMBA_CAMPAIGN_SEED chooses other damage.
"""

from __future__ import annotations

import collections
import os
import random
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
sys.path.insert(0, str(Path(__file__).parent))
from damaged_files import NEVER, OUTCOMES, choose_damage, classify, make_specimens

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("VIDEOMAMBA_CAMPAIGN_SEED", "0"))
CASES = {"run": 50, "student": 40, "teacher cache": 60}
OTHERS = 25


def test_damaged_files(tmp_path: Path) -> None:
    specimens = make_specimens(tmp_path / "whole")
    table: dict[str, collections.Counter[str]] = {}
    wrong: list[str] = []
    for specimen in specimens:
        counts = table.setdefault(specimen.name, collections.Counter())
        copy = tmp_path / "copy"
        shutil.copytree(specimen.folder, copy, symlinks=True)
        expected = specimen.use(copy)
        shutil.rmtree(copy)
        targets = specimen.targets()
        for number in range(CASES.get(specimen.name, OTHERS)):
            rng = random.Random(f"{SEED} {specimen.name} {number}")
            shutil.copytree(specimen.folder, copy, symlinks=True)
            target = rng.choice(targets)
            damage = choose_damage(target, rng)
            damage(copy / target, rng)
            outcome, message = classify(specimen, copy, expected)
            counts[outcome] += 1
            if outcome in NEVER:
                wrong.append(f"{specimen.name} {number}: {damage.__name__} of {target}: {outcome} {message}")
            shutil.rmtree(copy)
    print(f"\n{'':16}" + "".join(f"{name:>11}" for name in ("cases", *OUTCOMES)))
    for name, counts in table.items():
        print(f"{name:16}{sum(counts.values()):11}" + "".join(f"{counts[outcome]:11}" for outcome in OUTCOMES))
    print("\n".join(wrong))
    assert not wrong
