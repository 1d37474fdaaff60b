"""Imports point one way, every config composes, and the root shadows no package that transformers imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from videomamba_depth.configuration.ablate_schema import AblateConfig
from videomamba_depth.configuration.cli import CONFIG_DIR, load_config
from videomamba_depth.configuration.evaluate_schema import EvaluateConfig
from videomamba_depth.configuration.schema import PrecomputeConfig, TrainConfig
from videomamba_depth.configuration.serve_schema import ServeConfig
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

# What the files of each folder may import of ours, besides their own folder and those above and below it.
MAY_IMPORT = {
    "selective_scan": set(),
    "utils": set(),
    "flow": {"selective_scan", "utils"},
    "losses": {"utils"},
    "layers": {"selective_scan"},
    "video_mamba": {"layers", "selective_scan", "utils"},
    "models": {"layers", "video_mamba", "flow", "utils"},
    "data": {"flow", "utils"},
    "training": {"models", "losses", "data", "flow", "utils"},
    "streaming": {"models", "data", "utils"},
    "evaluation": {"models", "data", "flow", "utils"},
    "export": {"models", "utils"},
    "serving": {"streaming", "data", "utils"},
    "configuration": {
        "training",
        "streaming",
        "serving",
        "evaluation",
        "models",
        "data",
        "flow",
        "utils",
        "selective_scan",
    },
    "commands": {
        "configuration",
        "training",
        "streaming",
        "serving",
        "evaluation",
        "export",
        "models",
        "data",
        "utils",
    },
}
FOLDERS_BELOW = {
    "data": {"labels", "labels/geometry", "synthetic", "video"},
    "evaluation": {"datasets", "html", "metrics"},
    "streaming": {"key_frames", "sinks", "sources"},
}
NO_CODE = {"assets"}
ONLY_AT_THE_TOP = ("hydra", "omegaconf")


def package_of(module: str) -> str | None:
    """Return our package that a dotted name belongs to; None for anybody else's."""
    parts = module.split(".")
    if parts[0] == "videomamba_depth" and len(parts) > 1:
        return parts[1]
    return parts[0] if parts[0] == "selective_scan" else None


def imports(path: Path, package: str) -> set[str]:
    """Return the dotted names that a file imports; relative ones are not allowed."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path} imports relatively: say {package}'s full name")
    return found


def our_files() -> list[tuple[str, Path]]:
    files = [(p.relative_to(ROOT / "videomamba_depth").parts[0], p) for p in (ROOT / "videomamba_depth").rglob("*.py")]
    files = [(package, path) for package, path in files if package in MAY_IMPORT]
    return files + [("selective_scan", path) for path in (ROOT / "kernels").rglob("*.py")]


def test_every_folder_is_known() -> None:
    root = ROOT / "videomamba_depth"
    folders = {path.parent.relative_to(root).as_posix() for path in root.rglob("*.py")} - {"."}
    below = {f"{name}/{inner}" for name, inners in FOLDERS_BELOW.items() for inner in inners}
    assert folders == (set(MAY_IMPORT) - {"selective_scan"}) | below
    assert {path.name for path in root.iterdir() if path.is_dir()} - {"__pycache__"} == {
        name.partition("/")[0] for name in folders
    } | NO_CODE


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_point_down(package: str) -> None:
    paths = [path for owner, path in our_files() if owner == package]
    assert paths
    for path in paths:
        for module in imports(path, package):
            target = package_of(module)
            allowed = target is None or target == package or target in MAY_IMPORT[package]
            assert allowed, f"{path.relative_to(ROOT)} imports {module}"


def test_hydra_stops_at_the_top() -> None:
    for package, path in our_files():
        used = {module.split(".")[0] for module in imports(path, package)} & set(ONLY_AT_THE_TOP)
        assert not used or package == "configuration", f"{path.relative_to(ROOT)} imports {used}"


def test_an_arrow_that_points_up_would_be_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from videomamba_depth.training.trainer import Trainer\n")
    assert package_of(next(iter(imports(wrong, "models")))) == "training"


@pytest.mark.parametrize("with_kernels_package", [False, True])
def test_transformers_imports_from_the_root(tmp_path: Path, with_kernels_package: bool) -> None:
    """Transformers imports a package named `kernels` where there is one; our folder must not hide it."""
    code = "from transformers import DepthAnythingForDepthEstimation\n"
    if with_kernels_package:
        (tmp_path / "kernels").mkdir()
        (tmp_path / "kernels" / "__init__.py").write_text("marker = 1\n")
        code = f"import sys; sys.path.append({str(tmp_path)!r})\nimport kernels; assert kernels.marker == 1\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not (ROOT / "kernels" / "__init__.py").exists()


def choices(group: str) -> list[str]:
    names = sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
    return [f"{group}={name}" for name in names if name != "common"]


@pytest.mark.parametrize(
    "group", ["teacher", "model", "data", "loss", "optim", "trainer", "reference_flow", "experiment", "debug"]
)
def test_every_training_config_composes(group: str) -> None:
    assert choices(group)
    for choice in choices(group):
        config = load_config(
            "train", TrainConfig, [choice, "data.root=/videos", "reference_flow.weights=/raft.safetensors"]
        )
        assert config.trainer.steps > 0


def test_an_experiment_wins_over_the_defaults() -> None:
    config = load_config("train", TrainConfig, ["experiment=demo", "debug=smoke"])
    assert (config.name, config.run_dir) == ("demo", "runs/demo")
    assert config.trainer.steps == 4  # and debug over the experiment


def test_the_other_configs_compose() -> None:
    assert load_config("precompute", PrecomputeConfig, ["root=a", "cache=b"]).batch_frames > 0
    assert load_config("evaluate", EvaluateConfig, ["checkpoint=a"]).synthetic.videos > 0
    assert load_config("evaluate", EvaluateConfig, ["checkpoint=[a:b,c]"]).checkpoint == ["a:b", "c"]
    for preset in ("held_out", "tuning", "targets"):
        assert load_config("evaluate", EvaluateConfig, [f"preset={preset}"]).name == preset
    assert load_config("ablate", AblateConfig, []).ablations
    assert load_config("serve", ServeConfig, ["checkpoint=a"]).max_streams > 0
    assert load_config("stream", StreamConfig, ["checkpoint=a", "input=b", "output=c"]).checkpoint == "a"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.rooot=x", "no key 'data.rooot'"),
        ("trainer.steps=many", "trainer.steps"),
        ("trainer.steps=0", "trainer.steps must be positive"),
        ("data.stride=[1,0]", "data.stride must be positive"),
        ("data.reverse_probability=2", "data.reverse_probability must be in [0, 1]"),
        ("model.form=magic", "model.form must be one of innovation, plain"),
        ("teacher=unknown", "teacher/unknown"),
        ("data=video_folder", "data.root"),
    ],
)
def test_a_wrong_config_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("train", TrainConfig, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
