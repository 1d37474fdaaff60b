"""One way into every Hydra command: the config is checked against its schema before anything is built."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from videomamba_depth.utils.errors import UserError, exit_on_user_error
from videomamba_depth.utils.logger import configure_logging

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
"""The folder of YAML files at the root of the repository."""

Schema = TypeVar("Schema")


def hydra_entry(config_name: str, schema: type[Schema], main: Callable[[Schema], None]) -> None:
    """Run `main(config)` as a Hydra command: overrides, `--multirun`, `--help` and `--cfg job` work as in Hydra.

    A misspelt key, a wrong type or an unknown group option ends in one line on stderr and exit status 2, and so does
    every `UserError` that `main` raises.

    Args:
        config_name: file in `configs/`, without suffix.
        schema: dataclass that names and types every key.
        main: takes an instance of `schema`.
    """
    with exit_on_user_error():
        if not any(argument.startswith("-") for argument in sys.argv[1:]):
            _ = load_config(config_name, schema, sys.argv[1:])

    def checked_main(config: DictConfig) -> None:
        configure_logging()
        with exit_on_user_error():
            main(to_schema(config, schema))

    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(checked_main)()


def load_config(config_name: str, schema: type[Schema], overrides: list[str]) -> Schema:
    """Compose a config as the command line would, and return it as an instance of `schema`.

    Raises:
        UserError: an override or file does not fit; the message names the key.
    """
    try:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            config = hydra.compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from error
    return to_schema(config, schema)


def to_schema(config: DictConfig, schema: type[Schema]) -> Schema:
    """Return `config` as an instance of `schema`.

    Raises:
        UserError: an unknown key, a missing value or a wrong type, with the key's full name.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), config)
        missing = OmegaConf.missing_keys(merged)
        if missing:
            named = " and ".join(sorted(missing))
            raise UserError(f"config: no value for {named}; set it on the command line: {sorted(missing)[0]}=...")
        return _to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from error
    except (ValueError, TypeError) as error:  # from the schema's own __post_init__
        raise UserError(str(error)) from error


def to_yaml(config: Any) -> str:
    """Return a schema instance as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _to_object(config: Any) -> Any:
    return OmegaConf.to_object(config)


def _one_line(error: Exception) -> str:
    """Keep what a person needs of a Hydra or OmegaConf message: what is wrong, the full key, the remedy."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    message = lines[0].replace("Could not override", "there is no key").rstrip(".")
    named = f" (key: {key})" if key and key not in message else ""
    return f"config: {message}{named}; '--cfg job' prints all keys and values"
