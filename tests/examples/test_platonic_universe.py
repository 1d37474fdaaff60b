"""The Vim adapter against the interface that platonic-universe publishes, and mknn against a plain second one."""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from videomamba_depth.video_mamba.variants import VARIANTS, Variant
from videomamba_depth.video_mamba.vim import Vim

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "platonic_universe"


class ModelAdapter(ABC):
    """The published interface."""

    def __init__(self, model_name: str, size: str, alias: str | None = None) -> None:
        self.model_name, self.size, self.alias = model_name, size, alias

    @abstractmethod
    def load(self): ...

    @abstractmethod
    def get_preprocessor(self, modes): ...

    @abstractmethod
    def embed_for_mode(self, batch, mode): ...


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, type]]:
    found: dict[str, type] = {}
    modules = {name: ModuleType(name) for name in ("pu", "pu.models", "pu.models.base", "pu.models.registry")}
    modules["pu.models.base"].ModelAdapter = ModelAdapter
    modules["pu.models.registry"].register_adapter = found.__setitem__
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield found
    for name in ("vim_adapter", "mknn"):
        sys.modules.pop(name, None)


def test_the_adapter_embeds_fluxes_and_every_layer(
    registry: dict[str, type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("vim_adapter")
    assert set(registry) == {"vim", "vim-cls"}
    assert list(module.SIZES) == ["tiny", "small", "base"]
    monkeypatch.setitem(VARIANTS, "t", Variant(2, 16))
    torch.save({"model": Vim(depth=2, embed_dim=16).state_dict()}, tmp_path / "vim.pth")
    mean, cls = (registry[alias](str(tmp_path / "vim.pth"), "tiny", alias=alias) for alias in ("vim", "vim-cls"))
    for adapter in (mean, cls):
        adapter.load()
    generator = np.random.default_rng(0)
    flux = {"hsc": generator.normal(size=(5, 96, 96)), "jwst": generator.normal(size=(7, 96, 96))}
    prepare = mean.get_preprocessor(["hsc", "jwst", "desi"])
    example = prepare({f"{mode}_image": {"flux": values} for mode, values in flux.items()})
    assert set(example) == {"hsc", "jwst"}
    assert example["hsc"].shape == (3, 224, 224)
    batch = {"hsc": torch.stack([example["hsc"], example["jwst"]])}
    patches = mean.model.patch_features(batch["hsc"])
    torch.testing.assert_close(mean.embed_for_mode(batch, "hsc"), patches.mean(1))
    torch.testing.assert_close(cls.embed_for_mode(batch, "hsc"), cls.model.cls_features(batch["hsc"]))
    layers = mean.embed_all_layers_for_mode(batch, "hsc")
    assert mean.supports_layerwise()
    assert list(layers) == list(mean.get_layer_info()) == list(range(mean.get_num_layers())) == [0, 1]
    torch.testing.assert_close(layers[1], patches.mean(1))
    mean.enable_amp(True)
    rough = mean.embed_for_mode(batch, "hsc")
    assert rough.dtype == torch.float32
    assert 0 < (rough - patches.mean(1)).abs().max() < 0.1
    with pytest.raises(ValueError, match="pool_method"):
        mean.embed_all_layers_for_mode(batch, "hsc", pool_method="max")


def test_bands_become_colors_from_red_to_blue(registry: dict[str, type]) -> None:
    module = importlib.import_module("vim_adapter")
    flux = np.zeros((5, 224, 224), np.float32)
    flux[3, :100] = 1  # the reddest of the bands that are taken
    flux[2] = np.random.default_rng(0).normal(size=(224, 224))  # a band that is not
    red, green, blue = module.Preprocess(Vim(depth=1, embed_dim=16), ["hsc"]).pixels(flux, "hsc")
    assert red.std() > 0.5
    assert max(green.std(), blue.std()) < 1e-5
    gray = module.Preprocess(Vim(depth=1, embed_dim=16), []).pixels(flux[3], "any survey")
    assert gray[0].std() > 0.5
    with pytest.raises(ValueError, match="must be"):
        module.Preprocess(Vim(depth=1, embed_dim=16), []).pixels(flux[None], "hsc")
    with pytest.raises(ValueError, match=r"must be \[bands, H, W\] or \[H, W\]; got \(5, 0, 4\)"):
        module.Preprocess(Vim(depth=1, embed_dim=16), []).pixels(flux[:, :0, :4], "hsc")
    for wrong, mode in ((flux[:2], "hsc"), (flux, "any survey"), (flux.transpose(1, 2, 0), "hsc")):
        with pytest.raises(ValueError, match=f"flux of {mode} has {len(wrong)} bands"):
            module.Preprocess(Vim(depth=1, embed_dim=16), []).pixels(wrong, mode)
    with pytest.raises(ValueError, match="size must be one of tiny, small, base; got 'huge'"):
        registry["vim"]("vim.pth", "huge")


def test_a_saturated_pixel_leaves_the_others(registry: dict[str, type]) -> None:
    module = importlib.import_module("vim_adapter")
    flux = np.random.default_rng(0).normal(size=(224, 224))
    preprocess = module.Preprocess(Vim(depth=1, embed_dim=16), [])
    plain = preprocess.pixels(flux, "hsc")
    flux[0, 0] = np.inf
    assert (preprocess.pixels(flux, "hsc") - plain).abs().mean() < 0.05


@pytest.mark.parametrize("unit", [1e-17, 1e-40, 1e40])
def test_pixels_do_not_depend_on_the_unit_of_fluxes(registry: dict[str, type], unit: float) -> None:
    module = importlib.import_module("vim_adapter")
    flux = np.random.default_rng(0).normal(size=(5, 96, 96))
    flux[1] = 0
    flux[1, 48, 48] = 2  # both percentiles are 0
    prepare = module.Preprocess(Vim(depth=1, embed_dim=16), ["hsc"])
    plain, scaled = (prepare({"hsc_image": {"flux": scale * flux}})["hsc"] for scale in (1.0, unit))
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-5)
    assert plain.std((1, 2)).min() > 0.01


def plain_mknn(a: list[list[float]], b: list[list[float]], k: int) -> float:
    def nearest(x: list[list[float]], i: int) -> set[int]:
        def cosine(u: list[float], v: list[float]) -> float:
            dot, uu, vv = (sum(p * q for p, q in zip(s, t, strict=True)) for s, t in ((u, v), (u, u), (v, v)))
            return dot / (uu * vv) ** 0.5

        others = sorted((j for j in range(len(x)) if j != i), key=lambda j: -cosine(x[i], x[j]))
        return set(others[:k])

    return sum(len(nearest(a, i) & nearest(b, i)) for i in range(len(a))) / (k * len(a))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_mknn_equals_a_plain_second_implementation(registry: dict[str, type], k: int) -> None:
    mknn = importlib.import_module("mknn").mknn
    generator = torch.Generator().manual_seed(k)
    a = torch.randn(30, 5, generator=generator)
    b = a @ torch.randn(5, 8, generator=generator) + 0.5 * torch.randn(30, 8, generator=generator)
    assert mknn(a, b, k) == pytest.approx(plain_mknn(a.double().tolist(), b.double().tolist(), k))
    assert mknn(a, 3 * a, k) == 1
    assert mknn(a, b, k) == mknn(b, a, k)
    assert mknn(a.numpy(), b.numpy(), k) == mknn(a, b, k)
    for odd in (a[:, 0], a[:, :0], a[None], a.to(torch.complex64)):
        with pytest.raises(ValueError, match=r"b must be real, of shape \[n, C\]; got"):
            mknn(a, odd, k)
    with pytest.raises(ValueError, match="more than k"):
        mknn(a, b[:-1], k)
    with pytest.raises(ValueError, match="more than k"):
        mknn(a, b, 30)


def test_mknn_does_not_depend_on_the_scale_and_refuses_what_has_no_direction(registry: dict[str, type]) -> None:
    mknn = importlib.import_module("mknn").mknn
    a, b = torch.randn(2, 30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for factor in (1e-200, 1e-20, 1e200):
        assert mknn(factor * a, b, 3) == mknn(a, b, 3)
        assert mknn(factor * a, a, 3) == 1
    for value, what in ((torch.nan, "not finite"), (-torch.inf, "not finite"), (0.0, "all zeros")):
        wrong = a.clone()
        wrong[7] = value
        with pytest.raises(ValueError, match=f"row 7 of a is {what}"):
            mknn(wrong, b, 3)
        with pytest.raises(ValueError, match=f"row 7 of b is {what}"):
            mknn(b, wrong, 3)
