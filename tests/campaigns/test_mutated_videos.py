"""Hundreds of mutated videos: each is read whole, or something is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutated_videos import campaign, table


@pytest.mark.slow
def test_no_mutated_video_is_used_in_silence(tmp_path: Path) -> None:
    results = campaign(tmp_path, count=400, seed=0)
    print("\n" + table(results))
    wrong = [f"{Path(case.path).name}: {result}" for case, result in results if not result.right]
    assert not wrong, "\n".join(wrong)
    assert len(results) == 400
