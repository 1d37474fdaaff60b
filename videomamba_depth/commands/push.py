"""Publish a finished run on the Hugging Face hub, with a model card.

    videomamba-depth push runs/mine owner/name                     # then: checkpoint=owner/name, on any machine
    videomamba-depth push runs/mine owner/name --revision v1       # then: checkpoint=owner/name@v1

Only JSON, safetensors, a picture and the card are uploaded. The teacher's weights are not where they can be had by
name; those of a local folder are. It needs a token that may write: `hf auth login`, or HF_TOKEN.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import HfApi, get_token

from videomamba_depth.models.checkpoint import STUDENT_JSON, STUDENT_WEIGHTS, load_student, read_description
from videomamba_depth.models.hub import HUB_NAME
from videomamba_depth.models.teacher_files import first_line
from videomamba_depth.utils.arguments import path_argument
from videomamba_depth.utils.atomic import write_json
from videomamba_depth.utils.checkpoint import write_manifest
from videomamba_depth.utils.errors import UserError, exit_on_user_error
from videomamba_depth.utils.hub_refusals import hub_refusal

_LICENSES = {
    "embedded": "apache-2.0",
    "LiheYoung/depth-anything-": "apache-2.0",
    "depth-anything/Depth-Anything-V2-Small": "apache-2.0",
    "depth-anything/Depth-Anything-V2-Metric-Indoor-Small": "apache-2.0",
    "depth-anything/Depth-Anything-V2-Metric-Outdoor-Small": "apache-2.0",
    "depth-anything/Depth-Anything-V2-": "cc-by-nc-4.0",
    "depth-anything/DA3MONO-LARGE": "apache-2.0",
    "depth-anything/DA3METRIC-LARGE": "apache-2.0",
    "depth-anything/DA3-SMALL": "apache-2.0",
    "depth-anything/DA3-BASE": "apache-2.0",
    "depth-anything/DA3-": "cc-by-nc-4.0",
    "Intel/dpt-large": "apache-2.0",
    "Intel/zoedepth-": "mit",
    "apple/DepthPro": "apple-amlr",
    "google/tipsv2-": "apache-2.0",
}  # of teachers' weights by how their names begin, the longest first; docs/training.md
_BOUND = ("cc-by-nc-4.0", "apple-amlr")  # no commercial use
_CARD = """---
license: {license}
library_name: videomamba-depth
pipeline_tag: depth-estimation
tags: [video, streaming, monocular-depth]
{base_model}---

# {title}

A streaming video depth model, distilled without ground truth from {taught_by} by videomamba-depth {version}: frames
go in one by one, a small state is carried.

{picture}```python
from videomamba_depth import DepthStream

stream = DepthStream("{repository}")
depth = stream.step(frame)  # frame: uint8 RGB [H, W, 3]; depth: float32 [H, W]; unit: stream.depth_kind
```

## Teacher and license

The student starts from `{encoder}` (license of its weights: {encoder_license}){started} and was trained on the depth of
{taught_by} ({teacher_license}). {license_note}

## Data

```yaml
{data}```

## Recipe

Step {step} of the run `{run}`. All settings:

```yaml
{recipe}```

## Metrics

{metrics}
"""


def push_to_hub(
    run: str | Path, repository: str, *, private: bool = False, revision: str | None = None, token: str | None = None
) -> str:
    """Upload the last checkpoint of a run with a card of its recipe, data, teacher, license and metrics.

    Args:
        run: folder of the run, `runs/NAME`. The reports `evaluation/*.md` and the last of its `pictures/` come along.
        repository: `owner/name`; it is made where it does not exist, `private` or not.
        revision: branch to upload to, made where it does not exist; None: the main one.
        token: of the hub; None: HF_TOKEN, or that of `hf auth login`.

    Returns:
        the address of the commit.

    Raises:
        UserError: no run, no token, or the hub refuses.
    """
    run = Path(run)
    token = token or get_token()
    if not HUB_NAME.fullmatch(repository):
        raise UserError(f"a repository of the hub is called OWNER/NAME; got '{repository}'")
    if not (run / "last").is_dir():
        raise UserError(f"'{run}' is not a finished run (no {run / 'last'}); give a folder such as runs/NAME")
    if not token:
        raise UserError("pushing needs a token of the hub that may write: run `hf auth login`, or set HF_TOKEN")
    with TemporaryDirectory() as staging:
        prepare(run, repository, Path(staging))
        api = HfApi(token=token)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=staging, revision=revision, commit_message=f"Student of {run.name}"
            )
        except Exception as error:  # HTTP and network errors of many kinds
            reason = hub_refusal(error, answers_are_json=True) or first_line(error)
            raise UserError(f"the hub did not take '{repository}' ({reason})") from error
    return str(commit.commit_url)


def prepare(run: Path, repository: str, folder: Path) -> None:
    """Write what is uploaded into an empty folder, and load the student from there."""
    checkpoint = (run / "last").resolve()
    description = read_description(checkpoint)
    about = description["encoder"].get("teacher", description["encoder"])
    copy = (checkpoint / about["folder"]).resolve()
    about["folder"] = "encoder"
    name = str(about["model_id"])
    if name != "embedded" and not _is_public(name):  # nobody else can have it by its name
        about["model_id"] = Path(name).name
        (folder / "encoder").mkdir()
        for file in sorted(file for file in copy.iterdir() if file.suffix in (".json", ".safetensors")):
            shutil.copyfile(file, folder / "encoder" / file.name)
    shutil.copyfile(checkpoint / STUDENT_WEIGHTS, folder / STUDENT_WEIGHTS)
    write_json(folder / STUDENT_JSON, description)
    write_manifest(folder)
    load_student(folder)
    pictures = sorted((run / "pictures").glob("*.png"))
    if pictures:
        shutil.copyfile(pictures[-1], folder / "picture.png")
    (folder / "README.md").write_text(model_card(run, repository, description, bool(pictures)), encoding="utf-8")


def model_card(run: Path, repository: str, description: Mapping[str, Any], has_picture: bool) -> str:
    """Return the card of a run's student; metrics stand with their guards, or it is said that there are none."""
    about = description["encoder"].get("teacher", description["encoder"])
    encoder = str(about["model_id"])
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    reports = sorted(path for path in (run / "evaluation").glob("*.md") if ".so_far" not in path.name)
    tables = [path.read_text(encoding="utf-8").replace("\n#", "\n###").lstrip("# ") for path in reports]
    public = _without_folders({**config, "run_dir": None})
    teacher = str(config.get("teacher", {}).get("name", encoder))
    if not _is_public(teacher):
        teacher = Path(teacher).name
    data, start = config.get("data") or {}, (config.get("model") or {}).get("start")
    is_of_others = bool(data.get("labels")) and not data.get("offline_labels")  # the teacher only encodes then
    taught_by = f"another program (`{Path(data['labels']).name}`)" if is_of_others else f"`{teacher}`"
    terms = [_license(encoder), None if is_of_others else _license(teacher)]
    started = ""
    if start not in (None, "embedded"):
        started = f", from the student `{start if _is_public(start) else Path(start).name}` on (license: see its card)"
        terms.append(None)
    bound = next((known for known in terms if known in _BOUND), None)
    common = bound or (terms[0] if len(set(terms)) == 1 else None)
    return _CARD.format(
        license=common or "other",
        base_model=f"base_model: {encoder}\n" if _is_public(encoder) else "",
        title=repository.partition("/")[2],
        repository=repository,
        taught_by=taught_by,
        started=started,
        version=description["version"],
        picture="![frame, the student's depth and the teacher's](picture.png)\n\n" if has_picture else "",
        encoder=encoder,
        encoder_license=terms[0] or "not known here, see its page",
        teacher_license=terms[1] or "not known here, see its page",
        license_note="No commercial use." if bound else "The student's weights are bound by all of them.",
        data=yaml.safe_dump(public["data"], sort_keys=False),
        step=description.get("step", "unknown"),
        run=run.resolve().name,
        recipe=yaml.safe_dump({key: value for key, value in public.items() if value is not None}, sort_keys=False),
        metrics="\n\n".join(f"### {text}" for text in tables) or "Not evaluated: no report lay beside the run.",
    )


def _without_folders(value: Any) -> Any:
    """Return a config in which paths of this machine are names of files and folders alone."""
    if isinstance(value, Mapping):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    if isinstance(value, str) and "://" in value:  # hosts, buckets, users and signatures go too
        return Path(value.partition("://")[2].partition("/")[2].partition("?")[0]).name
    is_path = isinstance(value, str) and (value.startswith(("/", "~", ".")) or os.path.exists(value))
    return Path(value).name if is_path else value


def _is_public(name: str) -> bool:
    """Return whether a teacher can be had from the hub by its name: no folder here is called so."""
    return bool(HUB_NAME.fullmatch(name)) and not Path(name).is_dir()


def _license(name: str) -> str | None:
    """Return the license of a teacher's weights; None where it is not known here."""
    is_of = str.startswith if "/" in name else str.__eq__  # a folder may be called as the shipped one begins
    return next((known for start, known in _LICENSES.items() if is_of(name, start)), None)


def main(arguments: list[str] | None = None) -> None:
    """Push, then say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=path_argument, help="folder of a run, runs/NAME")
    parser.add_argument("repository", help="owner/name")
    parser.add_argument("--private", action="store_true", help="make the repository private, where it is new")
    parser.add_argument("--revision", help="branch; default: the main one")
    args = parser.parse_args(arguments)
    address = push_to_hub(args.run, args.repository, private=args.private, revision=args.revision)
    print(f"pushed {args.run} to {address}")


def run() -> None:
    """Run the command line."""
    with exit_on_user_error():
        main()


if __name__ == "__main__":
    run()
