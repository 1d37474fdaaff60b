"""Imports point one way and form no circle, every config composes, and the root hides no package of others."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
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

# What the files of each folder may import of ours besides their own folder: a folder with all below it, or one module.
MAY_IMPORT = {
    "selective_scan": set(),
    "utils": set(),
    "flow": {"selective_scan", "utils"},
    "losses": {"utils"},
    "layers": {"selective_scan"},
    "video_mamba": {"layers", "selective_scan", "utils"},
    "models": {"layers", "video_mamba", "flow", "utils"},
    "data": {"data/labels", "data/recorded_depth", "data/synthetic", "data/video", "utils"},
    "data/labels": {
        "data/labels/geometry",
        "data/recorded_depth",
        "data/video",
        "data/clip",
        "data/transforms",
        "flow",
        "utils",
    },
    "data/labels/geometry": {"data/labels/stabilize", "flow", "utils"},
    "data/recorded_depth": {"data/video", "utils"},
    "data/synthetic": {"utils"},
    "data/video": {"utils"},
    "training": {"models", "losses", "data", "flow", "utils"},
    "streaming": {"streaming/sinks", "streaming/sources", "models", "data", "utils"},
    "streaming/key_frames": {"streaming/depth_frame", "streaming/hooks", "streaming/resets", "models", "utils"},
    "streaming/sinks": {"streaming/depth_frame", "streaming/pipeline", "data/video", "utils"},
    "streaming/sources": {"streaming/depth_frame", "data/video", "utils"},
    "evaluation": {"evaluation/datasets", "evaluation/metrics", "models", "data", "flow", "utils"},
    "evaluation/datasets": {
        "evaluation/cache",
        "evaluation/clips",
        "evaluation/code_digest",
        "evaluation/metrics",
        "data/synthetic",
        "data/video",
        "flow",
        "utils",
    },
    "evaluation/html": {
        "evaluation/cache",
        "evaluation/methods",
        "evaluation/paired",
        "evaluation/pictures",
        "evaluation/report",
        "evaluation/summary",
    },
    "evaluation/metrics": {"evaluation/context", "flow", "utils"},
    "export": {"models", "flow", "utils"},
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
PACKAGES = ("videomamba_depth", "selective_scan")
NO_CODE = {"assets"}
ONLY_AT_THE_TOP = ("hydra", "omegaconf")
# What lies beside the package, or is installed apart from it; `models` and `video_mamba` are those of compat/.
OUTSIDE = {
    *("train", "inference_streaming", "setup", "scripts", "tests", "benchmarks", "examples", "configs", "kernels"),
    *("compat", "models", "video_mamba"),
}
# Its `__getattr__` imports what is asked for, after everything else; modules take only the version from it.
MAY_CLOSE_A_CIRCLE = {"videomamba_depth"}


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, `a.b.c` for `from a.b import c`; relative ones are not allowed."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively: say the full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return found


def place_of(name: str) -> str | None:
    """Return where a dotted name of ours lies, as in `MAY_IMPORT`; "" for the root, None for anybody else's name."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return None
    return "/".join(parts[1:] if parts[0] == "videomamba_depth" else parts)


def folder_of(place: str) -> str | None:
    """Return the innermost folder of `MAY_IMPORT` that holds a place; None where there is none."""
    holders = [folder for folder in MAY_IMPORT if f"{place}/".startswith(f"{folder}/")]
    return max(holders, key=len, default=None)


def may_import(folder: str, name: str) -> bool:
    """Tell whether a file in a folder may import a dotted name."""
    place = place_of(name)
    if place is None:
        return name.split(".")[0] not in OUTSIDE
    if place == "__version__" or folder_of(place) == folder:
        return True
    return any(f"{place}/".startswith(f"{allowed}/") for allowed in MAY_IMPORT[folder])


def modules(*packages: Path) -> dict[str, Path]:
    """Return the files of packages by their dotted names."""
    found = {}
    for package in packages:
        for path in package.rglob("*.py"):
            parts = path.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def circle(found: dict[str, Path]) -> list[str]:
    """Return the modules of an import circle, imports inside functions included; empty where there is none."""
    graph: dict[str, set[str]] = {module: set() for module in found}
    for module in found.keys() - MAY_CLOSE_A_CIRCLE:
        for name in imports(found[module]):
            parts = name.split(".")
            known = [whole for n in range(1, len(parts) + 1) if (whole := ".".join(parts[:n])) in found]
            # importing a.b.c runs a and a.b too, unless they hold the module that imports
            graph[module] |= {
                whole for whole in known if whole == known[-1] or not f"{module}.".startswith(f"{whole}.")
            }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def our_files() -> list[tuple[str, Path]]:
    """Return the files of each folder; the package's own `__init__` belongs to none."""
    root = ROOT / "videomamba_depth"
    files = [(path.parent.relative_to(root).as_posix(), path) for path in root.rglob("*.py")]
    return [(folder, path) for folder, path in files if folder != "."] + [
        ("selective_scan", path) for path in (ROOT / "kernels").rglob("*.py")
    ]


def test_every_folder_is_known() -> None:
    root = ROOT / "videomamba_depth"
    folders = {folder for folder, _ in our_files()}
    assert folders == set(MAY_IMPORT)
    assert {path.name for path in root.iterdir() if path.is_dir()} - {"__pycache__"} == {
        name.partition("/")[0] for name in folders - {"selective_scan"}
    } | NO_CODE
    assert [path.name for path in root.glob("*.py")] == ["__init__.py"]
    assert not list((ROOT / "kernels").glob("*.py"))


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_imports_point_down(folder: str) -> None:
    for path in (path for owner, path in our_files() if owner == folder):
        for name in imports(path):
            assert may_import(folder, name), f"{path.relative_to(ROOT)} imports {name}"


def test_no_imports_form_a_circle() -> None:
    assert not circle(modules(ROOT / "videomamba_depth", ROOT / "kernels" / "selective_scan"))


def test_no_import_is_relative() -> None:
    paths = [*ROOT.glob("*.py"), ROOT / "videomamba_depth" / "__init__.py"]
    for folder in ("scripts", "benchmarks", "examples"):
        paths += (ROOT / folder).rglob("*.py")
    for path in paths:
        imports(path)


def test_hydra_stops_at_the_top() -> None:
    for folder, path in our_files():
        used = {name.split(".")[0] for name in imports(path)} & set(ONLY_AT_THE_TOP)
        assert not used or folder == "configuration", f"{path.relative_to(ROOT)} imports {used}"


@pytest.mark.parametrize(
    ("folder", "line", "allowed"),
    [
        ("models", "from videomamba_depth.training.trainer import Trainer", False),
        ("models", "from videomamba_depth import training", False),
        ("models", "import videomamba_depth as v", False),
        ("models", "from videomamba_depth import DepthStream", False),
        ("models", "from videomamba_depth import __version__", True),
        ("models", "from videomamba_depth.helpers import help", False),
        ("models", "def f():\n    import_module('videomamba_depth.training.trainer')", False),
        ("models", "import train", False),
        ("models", "from tests import tiny", False),
        ("models", "from videomamba_depth.models import checkpoint", True),
        ("models", "import torch", True),
        ("evaluation/metrics", "from videomamba_depth.evaluation.engine import score", False),
        ("evaluation/metrics", "from videomamba_depth.evaluation import engine", False),
        ("evaluation/metrics", "from videomamba_depth.evaluation import context", True),
        ("streaming/sinks", "from videomamba_depth.streaming.job import run", False),
        ("data/video", "from videomamba_depth.data.dataset_video import VideoDataset", False),
        ("data", "from videomamba_depth.data.video.info import VideoInfo", True),
        ("commands", "from videomamba_depth.evaluation.html import page", True),
    ],
)
def test_an_arrow_that_points_up_is_seen(tmp_path: Path, folder: str, line: str, allowed: bool) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"{line}\n")
    assert all(may_import(folder, name) for name in imports(path)) == allowed


@pytest.mark.parametrize(
    ("files", "closed"),
    [
        ({"a": "from made_up import b", "b": "import torch"}, False),
        ({"a": "from made_up import b", "b": "from made_up.a import name"}, True),
        ({"a": "from made_up.b import name", "b": "def f():\n    import made_up.a"}, True),
        ({"a": "import made_up.b", "b": "import made_up.below.c", "below/c": "from made_up.a import name"}, True),
        ({"a": "import made_up.below.c", "below/__init__": "import made_up.a", "below/c": ""}, True),
        ({"below/__init__": "from made_up.below.c import name", "below/c": "", "a": "import made_up.below"}, False),
        ({"below/__init__": "import made_up.below.c", "below/c": "from made_up.below import name"}, True),
    ],
)
def test_a_circle_is_found(tmp_path: Path, files: dict[str, str], closed: bool) -> None:
    for name, text in files.items():
        path = tmp_path / "made_up" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert bool(circle(modules(tmp_path / "made_up"))) == closed


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
