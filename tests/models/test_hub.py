"""Students go to the hub and come back, against a stand-in of its HTTP interface."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import TOKEN, Hub, running_hub
from tiny import tiny_student

from videomamba_depth.commands.push import model_card, prepare, push_to_hub
from videomamba_depth.models.checkpoint import (
    describe_encoder,
    load_student,
    read_description,
    save_student,
    student_weights,
)
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.hub import is_hub_name
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.utils.checkpoint import write_manifest
from videomamba_depth.utils.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: DepthAnythingEncoder) -> Path:
    """The folder of a finished run of a teacher that lies in a local folder."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    tiny_encoder.save_pretrained(folder / "encoder")
    (folder / "checkpoints" / "step_00000007").mkdir(parents=True)
    (folder / "last").symlink_to("checkpoints/step_00000007")
    spec = TemporalSpec(*(ScaleSpec(num_blocks=n, backend="reference") for n in (1, 1, 2, 2)))
    encoder = describe_encoder(tiny_encoder, "../../encoder")
    weights = student_weights(tiny_student(tiny_encoder))
    save_student((folder / "last").resolve(), weights, spec, encoder, short_side=None, extra={"step": 7})
    config = {
        "name": "mine",
        "run_dir": str(folder),
        "data": {"root": "/home/me/my videos", "roots": ["~/a/b"]},
        "trainer": {"steps": 7},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "evaluation.md").write_text(
        "# Report\n\n## Worlds\n\n| TGE | AbsRel |\n|---|---|\n| 1 | 2 |\n"
    )
    return folder


@pytest.fixture(scope="module")
def hub() -> Hub:
    with running_hub() as served:
        yield served


def ask(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a hub of its own environment, which huggingface_hub reads when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {"HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**kept, **settings}, capture_output=True, text=True, timeout=300
    )


PUSH_AND_LOAD = """
import json
from videomamba_depth import DepthStream, load_student, push_to_hub
from videomamba_depth.utils.logger import configure_logging
configure_logging()
print(push_to_hub(RUN, "me/student", revision="v1"))
print(push_to_hub(RUN, "me/student"))
signatures = [load_student(name, revision=r).signature for name, r in (
    ("me/student", None), ("me/student@v1", None), ("me/student", "v1"))]
print(json.dumps([signatures, DepthStream("me/student", device="cpu").model.signature]))
for name, revision in (("me/nothing", None), ("me/student@v2", None)):
    try:
        load_student(name, revision=revision)
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_a_run_is_pushed_and_loaded_by_name(run: Path, hub: Hub, tmp_path: Path) -> None:
    code = PUSH_AND_LOAD.replace("RUN", repr(str(run)))
    done = ask(code, tmp_path, HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith(f"{hub.address}/me/student/commit/") for line in lines[:2])
    signature = load_student(run / "last").signature
    assert json.loads(lines[2]) == [[signature] * 3, signature]
    assert lines[3].startswith("UserError 'me/nothing' is neither a folder here nor a repository")
    assert lines[4].startswith("UserError 'me/student' on the hub has no revision 'v2'")
    assert "HTTP Request" not in done.stderr  # of whichever client the library uses
    files = hub.commits[hub.branches["me/student"]["main"]]
    assert {name.rpartition(".")[2] for name in files} <= {"safetensors", "json", "md", "gitattributes"}
    assert {"student.safetensors", "encoder/model.safetensors", "README.md"} < set(files)
    card = files["README.md"].decode()
    assert "### Report\n\n#### Worlds\n\n| TGE | AbsRel |" in card
    assert "license of its weights: not known here" in card
    assert "root: my videos\n" in card
    assert "- b\n" in card
    assert "/home/me" not in card
    assert not any(str(run.parent).encode() in data for data in files.values())  # no path of this machine

    offline = "from videomamba_depth import load_student; print(load_student('me/student').signature)"
    without = ask(offline, tmp_path, HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="1")
    assert without.stdout.strip() == signature, without.stderr


@pytest.mark.parametrize(
    ("teacher", "license", "line"),
    [
        ("apple/DepthPro-hf", "apple-amlr", "`apple/DepthPro-hf` (apple-amlr). No commercial use."),
        ("depth-anything/DA3-GIANT-1.1", "cc-by-nc-4.0", "(cc-by-nc-4.0). No commercial use."),
        ("depth-anything/DA3-BASE", "apache-2.0", "(apache-2.0). The student's weights are bound by all of them."),
        ("Intel/zoedepth-nyu", "other", "(mit). The student's weights are bound by all of them."),
        ("/home/me/secret/dpt", "other", "`dpt` (not known here, see its page)."),
        ("embedded-2", "other", "`embedded-2` (not known here, see its page)."),
    ],
)
def test_the_card_names_the_teacher_that_labelled(
    run: Path, tmp_path: Path, teacher: str, license: str, line: str
) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"teacher": {"name": teacher}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    description = read_description(run / "last")
    description["encoder"]["model_id"] = "depth-anything/Depth-Anything-V2-Small-hf"
    card = model_card(tmp_path, "owner/name", description, False)
    assert f"license: {license}\n" in card
    assert "starts from `depth-anything/Depth-Anything-V2-Small-hf` (license of its weights: apache-2.0)" in card
    assert line in card


@pytest.mark.parametrize(
    ("changes", "license", "line"),
    [
        ({"data": {"labels": "/x/vda_large"}}, "other", "depth of\nanother program (`vda_large`) (not known here"),
        ({"data": {"labels": "/x/own", "offline_labels": True}}, "apache-2.0", "depth of\n`embedded` (apache-2.0)"),
        ({"model": {"start": "/x/film/last"}}, "other", "from the student `last` on (license: see its card)"),
        ({"model": {"start": "embedded"}}, "apache-2.0", "apache-2.0) and was trained"),
    ],
)
def test_the_card_promises_no_license_of_what_it_does_not_know(
    run: Path, tmp_path: Path, changes: dict[str, Any], license: str, line: str
) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"teacher": {"name": "embedded"}} | changes
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    description = read_description(run / "last")
    description["encoder"]["model_id"] = "embedded"
    card = model_card(tmp_path, "owner/name", description, False)
    assert f"license: {license}\n" in card
    assert line in card


def test_a_teacher_in_a_relative_folder_comes_along(
    run: Path, tmp_path: Path, tiny_encoder: DepthAnythingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(run, mine, symlinks=True)
    tiny_encoder.save_pretrained(tmp_path / "models" / "tiny")
    described = json.loads((mine / "last" / "student.json").read_text())
    described["encoder"].get("teacher", described["encoder"])["model_id"] = "models/tiny"
    (mine / "last" / "student.json").write_text(json.dumps(described))
    write_manifest(mine / "last")
    config = yaml.safe_load((mine / "config.yaml").read_text())
    data = {"root": "models/tiny", "teacher_cache": "file:///home/me/labels", "roots": ["s3://bucket/k/films?sig=x"]}
    (mine / "config.yaml").write_text(yaml.safe_dump({**config, "data": data, "teacher": {"name": "models/tiny"}}))
    monkeypatch.chdir(tmp_path)
    staged = tmp_path / "staged"
    staged.mkdir()
    prepare(mine, "owner/name", staged)
    assert (staged / "encoder" / "model.safetensors").is_file()
    card = (staged / "README.md").read_text()
    assert not [leak for leak in ("base_model", "models/tiny", "home/me", "file:", "bucket", "sig=") if leak in card]
    assert "teacher_cache: labels\n" in card


def test_without_a_network_there_is_one_line(tmp_path: Path) -> None:
    code = (
        "from videomamba_depth.utils.errors import exit_on_user_error; from videomamba_depth import load_student\n"
        "with exit_on_user_error(): load_student('me/student')"
    )
    done = ask(code, tmp_path, HF_ENDPOINT="http://127.0.0.1:1")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: 'me/student' is no folder here, and cannot be had from the hub")


REFUSED = {
    "me/wrong-token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "refuses the token"),
    "me/gated": (403, {"X-Error-Code": "GatedRepo"}, "it is gated: accept its terms"),
    "me/forbidden": (403, {"X-Error-Message": f"{TOKEN} may not"}, "denies access"),
    "me/portal": (200, {}, "is not the hub: a log-in page of the network"),
    "me/proxy": (407, {}, "a proxy on the way wants a log-in"),
    "me/missing": (404, {"X-Error-Code": "RepoNotFound"}, "is neither a"),
}
LOAD_REFUSED = """
from videomamba_depth import load_student
from videomamba_depth.models.teachers import open_teacher
from videomamba_depth.utils.errors import exit_on_user_error
from videomamba_depth.video_mamba.checkpoint_files import hub_file
for load in (load_student, open_teacher, hub_file):
    for name in NAMES:
        try:
            load(name)
        except Exception as error:
            print(error)
with exit_on_user_error():
    load_student("me/pictures")
"""


@pytest.fixture(scope="module")
def refused(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """What one process is told that asks for all that is refused, and then for a repository without a student."""
    for name, (status, headers, _) in REFUSED.items():
        hub.refused[name] = status, headers
    hub.commit("me/pictures", "main", {"README.md": b"none"})
    code = LOAD_REFUSED.replace("NAMES", repr([*REFUSED]))
    return ask(code, tmp_path_factory.mktemp("refused"), HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN)


def test_what_the_hub_refuses_is_told_from_no_network(refused: subprocess.CompletedProcess[str]) -> None:
    lines, count = refused.stdout.splitlines(), len(REFUSED)
    assert len(lines) == 3 * count, refused.stderr
    for i, line in enumerate(lines):
        name, (_, _, reason) = [*REFUSED.items()][i % count]
        assert f"'{name}'" in line
        assert reason in line or (i >= 2 * count and name == "me/missing")
        assert not [word for word in ("no network", "connect once", TOKEN) if word in line]


def test_a_repository_without_a_student_is_named(refused: subprocess.CompletedProcess[str]) -> None:
    assert (
        refused.stderr.splitlines()[-1]
        == "error: 'me/pictures' on the hub holds no student (student.json is missing); check the name"
    )


def test_without_a_token_nothing_is_pushed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videomamba_depth.commands.push.get_token", lambda: None)
    with pytest.raises(UserError, match="needs a token of the hub that may write"):
        push_to_hub(run, "me/student")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a finished run"):
        push_to_hub(tmp_path, "me/student", token="x")
    with pytest.raises(UserError, match="OWNER/NAME"):
        push_to_hub(tmp_path, "student", token="x")
    with pytest.raises(UserError, match="revision=v1 is for a student of the hub"):
        load_student(tmp_path, revision="v1")


def test_a_folder_is_no_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_hub_name("owner/name")
    assert is_hub_name("owner/name@v1.0")
    for text in ("runs/lost", "embedded", "runs/x/last", "/owner/name", "./name", "teacher:a/b", Path("owner/name")):
        assert not is_hub_name(text)
