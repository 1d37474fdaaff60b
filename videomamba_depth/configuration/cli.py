"""One way into every Hydra command: the config is checked against its schema before anything is built."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from selective_scan.backends import BackendError, check_environment
from videomamba_depth.configuration.help_page import config_groups, help_page
from videomamba_depth.configuration.old_keys import renamed
from videomamba_depth.configuration.overrides import flags_last, quote_overrides
from videomamba_depth.utils.arguments import called_program
from videomamba_depth.utils.errors import UserError, exit_on_user_error
from videomamba_depth.utils.logger import configure_logging
from videomamba_depth.utils.settings import read_settings
from videomamba_depth.utils.signals import STOPPED_STATUS, on_stop

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "configs"
CONFIG_DIR = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"
"""The folder of YAML files: at the root of the repository, which an installed package holds inside."""

Schema = TypeVar("Schema")

OmegaConf.register_new_resolver("without_plus", lambda overrides: re.sub(r"\+\+", "", overrides), replace=True)
OmegaConf.register_new_resolver("unless", lambda given, value: value if given is None else None, replace=True)


def hydra_entry(config_name: str, schema: type[Schema], main: Callable[[Schema], None]) -> None:
    """Run `main(config)` as a Hydra command: overrides, `--multirun` and `--cfg job` work as in Hydra.

    `--help` prints the docstring of `main`'s module, the groups and the keys with their comments.

    A misspelled key, a wrong type or an unknown group option ends in one line on stderr and exit status 2, and so does
    every `UserError` that `main` raises, and a scan backend that the environment asks for and that does not run here.

    Args:
        config_name: file in `configs/`, without suffix.
        schema: dataclass that names and types every key.
        main: takes an instance of `schema`.
    """
    given = list(sys.argv)
    flags = [argument for argument in given[1:] if argument.startswith("-")]
    main_runs = SimpleNamespace(now=False)  # no lock or event: launchers pickle `checked_main`

    def checked_main(config: DictConfig) -> None:
        sys.argv = given  # as the person wrote it, for the records
        with exit_on_user_error(BackendError):
            _join_submitted_job()
            settings = to_schema(config, schema)
            main_runs.now = True
            main(settings)
            main_runs.now = False

    with exit_on_user_error(BackendError), _stopped_in_one_line(main_runs):
        if "--help" in flags or "-h" in flags:
            about = sys.modules[main.__module__].__doc__ or ""
            print(help_page(CONFIG_DIR, config_name, about, called_program()))
            return
        check_environment()
        configure_logging()
        arguments = renamed(given[1:], schema, _groups(config_name))
        if not flags:
            _ = load_config(config_name, schema, arguments)
        sweep = any(flag in ("-m", "--multirun") for flag in flags)
        sys.argv = [given[0], *flags_last(quote_overrides(arguments, schema, CONFIG_DIR, sweep))]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's errors come here, instead of being printed over several lines
        entry = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(checked_main)
        with _one_line_errors(), _launcher_errors():
            entry()


def sweep_folder() -> str | None:
    """Return the folder of this run of a `--multirun`; None outside of one. To be asked for within `main`."""
    current = HydraConfig.get()
    return current.runtime.output_dir if current.mode == RunMode.MULTIRUN else None


def _join_submitted_job() -> None:
    """Within a job of Hydra's submitit launchers, do what `hydra_entry` did where it was submitted, and join its ranks.

    Each of several tasks is a rank: the variables that torchrun would set are set from those of Slurm.
    """
    if "submitit" not in HydraConfig.get().launcher["_target_"]:
        return
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    check_environment()
    configure_logging()


@contextmanager
def _launcher_errors() -> Iterator[None]:
    """Put on one line that there is no Slurm, that it refuses a job, or that a job has failed."""
    try:
        yield
    except Exception as error:
        refused = isinstance(error, RuntimeError) and "srun" in str(error)
        if not refused and not type(error).__module__.startswith("submitit"):
            raise
        first = str(error).strip().splitlines()[0].rstrip(":")
        place = "the launcher needs a machine with sbatch and srun" if refused else "see hydra.launcher.submitit_folder"
        raise UserError(f"the launcher's job did not succeed: {first}; {place}") from error


def load_config(config_name: str, schema: type[Schema], overrides: Sequence[str]) -> Schema:
    """Compose a config as the command line would, and return it as an instance of `schema`.

    Raises:
        UserError: an override or file does not fit; the message names the key.
    """
    with _one_line_errors():
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            arguments = renamed(overrides, schema, _groups(config_name))
            quoted = quote_overrides(arguments, schema, CONFIG_DIR)
            try:
                config = hydra.compose(config_name, quoted)
            except ValueError as error:  # a number where Hydra wants the name of a group's file
                raise HydraException(str(error)) from error
    return to_schema(config, schema)


def to_schema(config: DictConfig, schema: type[Schema]) -> Schema:
    """Return `config` as an instance of `schema`, see `read_settings`.

    Raises:
        UserError: a key, a value or a type that does not fit, with the key's full name.
    """
    with _one_line_errors():
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            named = " and ".join(missing)
            raise UserError(f"config: no value for {named}; set it on the command line: {missing[0]}=...")
        values = OmegaConf.to_container(config, resolve=True)
    return read_settings(schema, values)  # type: ignore[arg-type]


def _groups(config_name: str) -> Collection[str]:
    return config_groups((CONFIG_DIR / f"{config_name}.yaml").read_text(encoding="utf-8"))


@contextmanager
def _stopped_in_one_line(main_runs: SimpleNamespace) -> Iterator[None]:
    """Take SIGTERM and SIGHUP for Ctrl-C, and end with one line and status 130 where `main` does nothing better.

    main_runs: its `now` is true while it does. Before, OmegaConf's clean-up may raise something in the stop's place.
    """
    try:
        with on_stop():
            yield
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt) and (main_runs.now or not _came_of_a_stop(error)):
            raise
        tqdm.write("stopped; what was finished is kept", file=sys.stderr)  # on a line of its own, not beside a bar
        sys.exit(STOPPED_STATUS)


def _came_of_a_stop(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    """Keep what a person needs of a Hydra or OmegaConf message: what is wrong, the full key, the remedy."""
    if isinstance(error, OverrideParseException):
        return f"config: '{error.override}' is no override: KEY=VALUE, or quotes and brackets are missing"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    overridden = re.match("Could not override '(.*)'", lines[0])
    if overridden is not None:  # Hydra names what was given; where that is a group, the key within it is what is wrong
        within = str(getattr(error.__cause__, "full_key", None))
        key = within if within.startswith(f"{overridden[1]}.") else overridden[1]
        lines[0] = lines[0].replace(overridden[0], f"there is no key '{key}'")
    message = lines[0].rstrip(".")
    named = f" (key: {key})" if key and key not in message else ""
    options = [option for option in getattr(error, "options", None) or () if option != "common"]
    if options:
        missing = "; pip install 'videomamba-depth[slurm]'" if "hydra/launcher/submitit" in message else ""
        return f"config: {message}; there are {', '.join(options)}{missing}"
    return f"config: {message}{named}; '--cfg job' prints all keys and values"
