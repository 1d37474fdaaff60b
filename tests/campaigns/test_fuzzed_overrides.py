"""No override of any command leads to a traceback, a hang or silent use."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.mark.slow
def test_fuzzed_overrides() -> None:
    from fuzzed_overrides import campaign, table

    tally, bad = campaign(count=450, seed=1)
    print(table(tally))
    assert not bad
