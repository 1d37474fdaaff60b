"""Names and types of `configs/ablate.yaml`, and the runs that it lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.settings import file_name, path, ranged, text, texts_by_name

RECIPE = "recipe"
"""Name of the group and the variant that is the unchanged recipe."""


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """`configs/ablate.yaml`."""

    recipe: str = file_name()
    base: list[str] = text()
    seeds: list[int] = ranged(0, 2**31 - 1)
    only: list[str] = text()
    output: str = path()
    workers: int = ranged(1, 256)
    evaluation: list[str] = text()
    ablations: dict[str, list[str]] = texts_by_name()

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ from each other; got {list(self.seeds)}")

    def groups(self) -> dict[str, str]:
        """Return {variant: group} of what is trained, the recipe first; a variant is named by its overrides.

        Raises:
            UserError: `only` names a group that is not there, or nothing is to be trained.
        """
        unknown = sorted(set(self.only) - set(self.ablations))
        if unknown:
            raise UserError(f"only: there is no group '{unknown[0]}'; there are {', '.join(self.ablations)}")
        chosen = {group: variants for group, variants in self.ablations.items() if not self.only or group in self.only}
        return {RECIPE: RECIPE} | {variant: group for group, variants in chosen.items() for variant in variants}


@dataclass(frozen=True)
class AblationRun:
    """One training: the overrides `variant` of the recipe, and a seed."""

    variant: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """The variant's and the seed's name in one, without spaces."""
        return f"{variant_folder(self.variant)}#{self.seed}"


def variant_folder(variant: str) -> str:
    """Return a variant's folder name: its overrides, joined by commas, with "_" for the slashes of paths."""
    return ",".join(variant.split()).replace("/", "_")


def list_runs(config: AblateConfig) -> list[AblationRun]:
    """Return all runs, seed by seed, so that the first seed gives a whole table early."""
    runs = []
    for seed in config.seeds:
        for variant in config.groups():
            folder = Path(config.output) / variant_folder(variant) / f"seed={seed}"
            changes = [] if variant == RECIPE else variant.split()
            shared = (f"experiment={config.recipe}", *config.base)
            runs.append(
                AblationRun(variant, seed, folder, (*shared, *changes, f"trainer.seed={seed}", f"run_dir={folder}"))
            )
    return runs
