"""Students on the Hugging Face hub: `owner/name`, or `owner/name@REVISION`, in place of a checkpoint's folder."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from videomamba_depth.models.teacher_files import errors_alone, first_line
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.hub_refusals import hub_refusal

HUB_FILES = ("student.json", "student.safetensors", "manifest.json", "encoder/*.json", "encoder/*.safetensors")
"""What is downloaded, and nothing else: JSON and safetensors."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w")


def is_hub_name(checkpoint: str | Path) -> bool:
    """Return whether a checkpoint is `owner/name` or `owner/name@REVISION`, and no folder `owner` lies here."""
    name = str(checkpoint).partition("@")[0]
    return isinstance(checkpoint, str) and bool(HUB_NAME.fullmatch(name)) and not Path(name).parent.is_dir()


def download_student(name: str, revision: str | None = None) -> Path:
    """Return the folder of a student of the hub, from the local cache where it is current or there is no network.

    Args:
        name: `owner/name`, or `owner/name@REVISION`.
        revision: branch, tag or commit; None: the one of the name, else the main branch.

    Raises:
        UserError: the hub does not know it or refuses, or it cannot be reached, and nothing is in the cache; or it
            holds no student.
    """
    repository, _, named = name.partition("@")
    revision = revision or named or None
    try:
        with errors_alone("huggingface_hub"):
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(HUB_FILES)))
    except RevisionNotFoundError as error:
        raise UserError(
            f"'{repository}' on the hub has no revision '{revision}'; name a branch, tag or commit"
        ) from error
    except Exception as error:  # HTTP errors of many kinds, a full disk, a cache that is not whole
        if refusal := hub_refusal(error, answers_are_json=True):
            raise UserError(f"'{repository}' is no folder here, and cannot be had from the hub: {refusal}") from error
        if isinstance(error, RepositoryNotFoundError):
            raise UserError(
                f"'{repository}' is neither a folder here nor a repository that the hub shows; check the spelling, or"
                " set HF_TOKEN where it is private"
            ) from error
        raise UserError(
            f"'{repository}' is no folder here, and cannot be had from the hub ({first_line(error)}) nor from its local"
            " cache; connect once, or give a folder such as runs/NAME/last"
        ) from error
    if not (folder / HUB_FILES[0]).is_file():
        raise UserError(f"'{repository}' on the hub holds no student ({HUB_FILES[0]} is missing); check the name")
    return folder
