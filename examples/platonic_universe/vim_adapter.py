"""Vim as a model of the platonic-universe package: importing this module registers the adapter under "vim".

    import vim_adapter                                   # with this folder on sys.path
    from pu.models import get_adapter

    adapter = get_adapter("vim")(*vim_adapter.SIZES["tiny"], alias="vim")   # or a local .pth as the name
    adapter.load()

It embeds images alone; spectra ("desi", "sdss") come with embeddings of their own in that package's data sets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from pu.models.base import ModelAdapter
from pu.models.registry import register_adapter
from torch import Tensor

from videomamba_depth.video_mamba.checkpoints import load_backbone
from videomamba_depth.video_mamba.positions import split_rows
from videomamba_depth.video_mamba.variants import VARIANTS
from videomamba_depth.video_mamba.vim import Vim

SIZES = {size: (f"hustvl/Vim-{size}-midclstok", size) for size in ("tiny", "small", "base")}
"""(model_name, size) of the published models."""
BANDS = {"hsc": (0, 1, 3), "jwst": (0, 4, 6), "legacysurvey": (0, 1, 3)}
"""Bands that become blue, green and red, by survey: g, r, z; F090W, F277W, F444W; g, r, z."""
SPECTRA = ("desi", "sdss")


class VimAdapter(ModelAdapter):
    """Embeds pictures with a published Vim.

    Args:
        model_name: a repository on the Hugging Face hub, or a .pth or .safetensors file.
        size: "tiny", "small" or "base".
        alias: "vim-cls" embeds by the CLS token; anything else by the mean of the patches.
    """

    def __init__(self, model_name: str, size: str, alias: str | None = None) -> None:
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}; got {size!r}")
        super().__init__(model_name, size, alias)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._use_amp = False

    def load(self, compile_model: bool = False) -> None:
        """Build the model and load its weights (weights only, no code of the file runs)."""
        self.model = Vim(**VARIANTS[self.size[0]]._asdict(), num_classes=0)
        load_backbone(self.model, self.model_name, "vim")
        self.model.to(self.device).eval()
        self._streams = torch.compile(self.model._streams) if compile_model else self.model._streams

    def enable_amp(self, enabled: bool = True) -> None:
        """Run in float16 on a GPU (bfloat16 on a CPU) where it is safe; embeddings stay float32."""
        self._use_amp = enabled

    def get_preprocessor(self, modes: Iterable[str], resize: bool = False, resize_mode: str = "match") -> Any:
        """Return what turns an example's fluxes into pixels; resizing to the model's size is part of it."""
        return Preprocess(self.model, [mode for mode in modes if mode not in SPECTRA])

    @torch.no_grad()
    def embed_for_mode(self, batch: dict[str, Any], mode: str) -> Tensor:
        """Return embeddings `[B, C]` float32 of `batch[mode] [B, 3, H, W]`."""
        return self._embed(batch, mode, [self.model.depth], self.alias == "vim-cls")[0]

    def supports_layerwise(self) -> bool:
        return True

    def get_num_layers(self) -> int:
        return self.model.depth

    def get_layer_info(self) -> dict[int, str]:
        return {index: f"layers.{index}" for index in range(self.model.depth)}

    @torch.no_grad()
    def embed_all_layers_for_mode(
        self, batch: dict[str, Any], mode: str, pool_method: str = "mean"
    ) -> dict[int, Tensor]:
        """Return embeddings by layer; pool_method "mean" (of the patches) or "cls"."""
        if pool_method not in ("mean", "cls"):
            raise ValueError(f"pool_method must be 'mean' or 'cls'; got {pool_method!r}")
        return dict(enumerate(self._embed(batch, mode, list(range(1, self.model.depth + 1)), pool_method == "cls")))

    def _embed(self, batch: dict[str, Any], mode: str, after: list[int], use_cls: bool) -> list[Tensor]:
        pixels = batch[mode].to(self.device)
        dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        with torch.autocast(self.device.type, dtype, enabled=self._use_amp):
            streams = [self.model.norm_f(stream) for stream in self._streams(pixels, after)]  # [B, n + 1, C]
        parts = [split_rows(stream.float(), self.model.cls_positions(stream.shape[1] - 1)) for stream in streams]
        return [(cls if use_cls else patches).mean(1) for patches, cls in parts]


class Preprocess:
    """From fluxes to what Vim was trained on: three bands as red, green and blue, stretched by asinh, resized."""

    def __init__(self, model: Vim, modes: list[str]) -> None:
        self.model, self.modes = model, modes

    def __call__(self, example: dict[str, Any]) -> dict[str, Tensor]:
        return {
            mode: self.pixels(np.asarray(example[f"{mode}_image"]["flux"], np.float64), mode) for mode in self.modes
        }

    def pixels(self, flux: np.ndarray, mode: str) -> Tensor:
        """Return `[3, 224, 224]` of flux `[bands, H, W]` (3 bands: as they are) or `[H, W]`."""
        if flux.ndim not in (2, 3) or not flux.size:
            raise ValueError(f"flux of {mode} must be [bands, H, W] or [H, W]; got {flux.shape}")
        bands = np.stack([flux] * 3) if flux.ndim == 2 else flux
        if len(bands) != 3:
            if mode not in BANDS or not max(BANDS[mode]) < len(bands) < 16:  # more: rows, where bands are last
                raise ValueError(f"flux of {mode} has {len(bands)} bands; give 3, or those of {', '.join(BANDS)}")
            bands = bands[list(BANDS[mode])]
        bands = np.nan_to_num(bands, posinf=0, neginf=0)  # saturated pixels would leave nothing of the others
        blue_to_red = np.stack([stretch(band) for band in bands])
        return self.model.preprocess(torch.from_numpy(blue_to_red[::-1].copy())[None])[0].cpu()


def stretch(band: np.ndarray) -> np.ndarray:
    """Return asinh of the band over the span of its 1st to 99th percentile, in [0, 1], float32, whatever the unit.

    Where the percentiles are equal it is the span of all pixels; 0 for a constant band.
    """
    band = band / (np.abs(band).max() or 1.0)
    low, high = np.percentile(band, (1, 99))
    curve = np.arcsinh((band - low) / (high - low or np.ptp(band) or 1.0))
    return ((curve - curve.min()) / (np.ptp(curve) or 1.0)).astype(np.float32)


for _alias in ("vim", "vim-cls"):
    register_adapter(_alias, VimAdapter)
