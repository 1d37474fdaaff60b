"""Packages that only some uses need: each comes with an extra of the distribution."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from videomamba_depth.utils.errors import UserError

EXTRAS = {
    "tensorboard": "train",
    "zarr": "train",
    "jinja2": "report",
    "matplotlib": "report",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "starlette": "serve",
    "uvicorn": "serve",
    "websockets": "serve",
    "wandb": "wandb",
}
"""The extra that brings a package."""


def require(package: str, purpose: str = "this") -> Any:
    """Import a package that an extra brings, and return it.

    Args:
        package: as it is imported, one of `EXTRAS` or a module of one.
        purpose: what needs it, for the message.

    Raises:
        UserError: it is not there; the message names the extra.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        extra = EXTRAS[name]
        if name == "zarr" and sys.version_info < (3, 11):
            raise UserError(f"{purpose} needs {name}, which needs Python 3.11 or newer") from error
        raise UserError(f"{purpose} needs {name}: pip install 'videomamba-depth[{extra}]'") from error
