"""A sink, or a source, stands in two places: its own file and the table of `open.py`."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from videomamba_depth.commands.stream import main
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.streaming.sinks.open import RAW_SINKS
from videomamba_depth.utils.errors import UserError

ROOT = Path(__file__).parents[2]
NOT_CHOSEN = {"FrameSource", "LatestFrames"}  # what every source is, and what every live one is put into
NOT_CHOSEN |= {"RawStreamSink", "PreviewSink"}  # stdout and the window: no files


def classes(folder: str, methods: set[str]) -> dict[str, Path]:
    """Return {class: file} of those in a folder of the stream that have all the methods."""
    found = {}
    for path in sorted((ROOT / "videomamba_depth" / "streaming" / folder).glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                own = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                found |= {node.name: path} if methods <= own else {}
    return {name: path for name, path in found.items() if name not in NOT_CHOSEN}


@pytest.mark.parametrize(("folder", "methods"), [("sinks", {"write"}), ("sources", {"__iter__"})])
def test_only_its_file_and_the_table_name_it(folder: str, methods: set[str]) -> None:
    named = classes(folder, methods)
    assert len(named) >= 5
    files = [*(ROOT / "videomamba_depth").rglob("*.py"), ROOT / "inference_streaming.py"]
    for name, path in named.items():
        places = {file for file in files if re.search(rf"\b{name}\(", file.read_text(encoding="utf-8"))}
        assert places | {path} == {path, path.parent / "open.py"}, f"{name} stands in {places}"
        assert path.parent / "open.py" in places


@pytest.mark.parametrize("raw", RAW_SINKS)
def test_every_entry_is_a_value_of_raw_and_is_written(tmp_path: Path, checkpoint: Path, video: Path, raw: str) -> None:
    named = [f"checkpoint={checkpoint}", f"input={video}", f"output={tmp_path}/out", "device=cpu", "max_frames=2"]
    main(load_config("stream", StreamConfig, [*named, f"raw={raw}", "video=none"]))
    stamps = json.loads((tmp_path / "out" / "clip.json").read_text())["outputs"]
    assert stamps[f"clip{RAW_SINKS[raw].suffix}"]["files"] > 0


def test_a_value_without_an_entry_is_refused() -> None:
    with pytest.raises(UserError, match=rf"raw must be one of none, {', '.join(RAW_SINKS)}; got 'csv'"):
        load_config("stream", StreamConfig, ["checkpoint=a", "input=b", "output=c", "raw=csv"])
