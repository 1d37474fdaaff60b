"""Depth Anything 3 from its published folders, one view at a time: teacher and encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn
from torch.nn import functional as F

from videomamba_depth.models.dinov2_multi_view import BlockPlan, MultiViewDinov2
from videomamba_depth.models.encoder_da import SCALES, Teacher
from videomamba_depth.models.head_depth import DepthHead
from videomamba_depth.models.teacher_files import errors_alone, loading_error, read_config
from videomamba_depth.utils.checkpoint import check_finite, load_tensors, save_tensors, verify_files
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError

MAX_SKY = 0.3
"""Sky is where the sky map is at least this."""

METRIC_FOCAL_PX = 300.0
"""Meters are the metric model's depth times the focal length in px, divided by this."""

_WEIGHTS = "model.safetensors"
_METRIC = "da3metric"


def is_depth_anything_3(config: dict[str, Any]) -> bool:
    """Return whether a config.json is one of Depth Anything 3."""
    return str(config.get("model_name", "")).startswith("da3") and "model_type" not in config


class DepthAnything3Encoder(Teacher):
    """Depth Anything 3 (Lin et al., arXiv 2511.10647) for one view, split where the temporal model goes in.

    The monocular, the metric and the any-view models of `config.json` and `model.safetensors` as published; cameras,
    rays and Gaussians are left out. `encode_frame` ends after the DPT's projections to four scales, `head` does the
    rest.

    Its depth z comes as inverse depth 1/z, up to a scale, as students have it; of the metric model, where the field of
    view is known, in meters. The paper says that the monocular model's depth is known up to a shift too: it is taken
    for 0. Labels are NaN in the sky (monocular and metric models), or where the confidence is low (any-view models).

    Args:
        config: content of config.json.
        weights: as published, float32 or less.
        horizontal_fov_deg: of all frames, for meters; None: relative depth.
        min_confidence: of a label, 1 or more.
        short_side: see `FrameEncoder`; DA3's own program takes frames whose long side is 504 px.

    Raises:
        ValueError, KeyError, TypeError: a config that makes no sense, or other weights than its.
    """

    def __init__(
        self,
        config: dict[str, Any],
        weights: dict[str, Tensor],
        model_id: str,
        short_side: int | None = None,
        horizontal_fov_deg: float | None = None,
        min_confidence: float = 1.0,
    ) -> None:
        names = {_our_name(name): name for name in weights}
        if twice := [name for name in weights if names[_our_name(name)] != name]:
            raise ValueError(f"'{twice[0]}' and '{names[_our_name(twice[0])]}' are the same tensor: keep one of them")
        weights = {name: weights[published] for name, published in names.items()}
        blocks = {name.split(".")[2] for name in weights if name.startswith("backbone.blocks.")}
        depth = len(blocks)
        if gaps := {str(i) for i in range(depth)} - blocks:
            raise ValueError(f"there are {depth} blocks, and none is the {min(gaps, key=int)}th, counted from 0")
        plan = block_plan(config["config"]["net"], depth)
        width, patch_size = weights["backbone.patch_embed.proj.weight"].shape[::3]
        grid = round((weights["backbone.pos_embed"].shape[1] - 1) ** 0.5)
        backbone = MultiViewDinov2(width, depth, grid, patch_size, plan, "backbone.blocks.0.mlp.w12.weight" in weights)
        channels = tuple(len(weights[f"reassemble_stage.projects.{i}.weight"]) for i in range(len(SCALES)))
        is_any_view = "reassemble_stage.norm.weight" in weights
        is_metric = str(config["model_name"]).startswith(_METRIC) and horizontal_fov_deg is not None
        kind = DepthKind.METRIC if is_metric else DepthKind.RELATIVE
        super().__init__(backbone, channels, (4, 2, 1, 0.5), patch_size, kind, None, short_side)
        self.model_id = model_id
        self.config = {key: value for key, value in config.items() if not key.startswith("_")}  # what loading added
        self.horizontal_fov_deg, self.min_confidence = horizontal_fov_deg, min_confidence
        tokens = width * (2 if plan.cat_token else 1)
        self.reassemble_stage = Reassemble(tokens, channels, is_any_view)
        fusion, outputs = len(weights["head.layer1_rn.weight"]), len(weights["head.output_conv2.2.weight"])
        focal = None
        if is_metric:
            assert horizontal_fov_deg is not None
            focal = 0.5 / torch.tensor(horizontal_fov_deg / 2).deg2rad().tan().item()
        has_sky = "head.sky_output_conv2.0.weight" in weights
        self.head = Da3Head(channels, fusion, outputs, patch_size, is_any_view, has_sky, focal)
        if str(config["model_name"]).startswith(_METRIC) and not has_sky:
            raise ValueError(f"these are not the weights of {config['model_name']}: they find no sky")
        own = self.state_dict()
        missing = [name for name, t in own.items() if name not in weights or weights[name].shape != t.shape]
        if missing:
            raise ValueError(f"{len(missing)} tensors missing or of another shape, first {missing[0]}")
        unused = [name for name in weights.keys() - own.keys() if _decides_depth(name)]
        if unused:
            raise ValueError(f"config.json leaves {len(unused)} tensors unused, first {published_name(min(unused))}")
        integers = [name for name in own if not weights[name].is_floating_point()]
        if integers:
            first = weights[integers[0]].dtype
            raise ValueError(f"{len(integers)} tensors of integers, first {published_name(integers[0])} of {first}")
        self.load_state_dict({name: weights[name] for name in own})
        self.masks = has_sky or min_confidence > 1
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        dtype: torch.dtype = torch.float32,
        short_side: int | None = None,
        horizontal_fov_deg: float | None = None,
        min_confidence: float = 1.0,
    ) -> DepthAnything3Encoder:
        """Load a published folder, or a copy by `save_pretrained`.

        Args:
            name_or_path: hub id or local folder.
            dtype: of the weights: float32, bfloat16 or float16.
            short_side, horizontal_fov_deg, min_confidence: see the class.

        Raises:
            UserError: no such folder or id, no network, a nested model, or broken files.
        """
        config = read_config(name_or_path)
        name = str(config.get("model_name"))
        if "anyview" in (config.get("config") or {}) or "nested" in name:
            raise UserError(
                f"'{name_or_path}' nests two models, which is not read; use DA3METRIC-LARGE with the field of view of"
                " your camera (teacher.horizontal_fov_deg=), or labels that its own program wrote"
            )
        if horizontal_fov_deg is not None and not name.startswith(_METRIC):
            raise UserError(
                f"teacher.horizontal_fov_deg: only DA3METRIC-LARGE makes meters of it, '{name_or_path}' is {name}"
            )
        try:
            weights = _read_weights(name_or_path)
            encoder = cls(config, weights, name_or_path, short_side, horizontal_fov_deg, min_confidence)
            if min_confidence > 1 and not encoder.reassemble_stage.has_positions:
                raise UserError(
                    f"teacher.min_confidence: '{name_or_path}' ({name}) has no confidence; leave the key out"
                )
            check_finite(dict(encoder.named_parameters()), f"'{name_or_path}' cannot be used")
            for part in (encoder.backbone, encoder.reassemble_stage, encoder.head):
                part.to(dtype)
            encoder.check_runs()
        except UserError:
            raise
        except Exception as error:  # of the hub, of files, or of a config.json that makes no sense
            raise loading_error(name_or_path, error) from error
        return encoder

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a copy in the published format, without the parts that are not used here."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
        weights = {published_name(name): t.contiguous().cpu() for name, t in self.state_dict().items()}
        save_tensors(Path(folder) / _WEIGHTS, weights)

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> dict[str, Tensor]:
        """Run the ViT and the projections to four scales, see `FrameEncoder.encode_pixels`."""
        rows, columns = (side // self.patch_size for side in pixels.shape[-2:])
        return dict(
            zip(SCALES, self.reassemble_stage(self.backbone(pixels.to(self.dtype)), rows, columns), strict=True)
        )

    @torch.no_grad()
    def decode_labels(self, features: dict[str, Tensor], image_size: tuple[int, int]) -> Tensor:
        """Return `decode`, NaN in the sky and where the confidence is too low."""
        assert isinstance(self.head, Da3Head)
        maps = self.head.maps(features)
        depth = self.head.resized(maps["depth"], image_size)
        if "sky" in maps:
            depth[self.head.resized(maps["sky"], image_size) >= MAX_SKY] = torch.nan
        if "confidence" in maps and self.min_confidence > 1:
            depth[self.head.resized(maps["confidence"], image_size) < self.min_confidence] = torch.nan
        return depth

    def options(self) -> dict[str, Any]:
        """Return the field of view."""
        return {} if self.horizontal_fov_deg is None else {"horizontal_fov_deg": self.horizontal_fov_deg}

    def cache_key(self) -> dict[str, str | int | None]:
        """Return what decides the labels."""
        key = super().cache_key()
        about = f"field of view {self.horizontal_fov_deg}, sky below {MAX_SKY}, confidence from {self.min_confidence}"
        return {**key, "resize": f"antialiased cubic, whole frames in whole levels, then to patches; {about}"}


class Reassemble(nn.Module):
    """From tokens of four blocks to maps of four scales, as DPT (Ranftl et al., arXiv 2103.13413) does."""

    def __init__(self, tokens: int, channels: tuple[int, ...], is_any_view: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(tokens) if is_any_view else nn.Identity()
        self.has_positions = is_any_view
        self.projects = nn.ModuleList(nn.Conv2d(tokens, c, 1) for c in channels)
        fine, middle, _, coarse = channels
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(fine, fine, 4, stride=4),
                nn.ConvTranspose2d(middle, middle, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(coarse, coarse, 3, stride=2, padding=1),
            ]
        )

    def forward(self, tokens: list[Tensor], rows: int, columns: int) -> list[Tensor]:
        """Return the maps `[B, C_i, H_i, W_i]` of tokens 4 × `[B, rows·columns, D]`."""
        maps = []
        for x, project, resize in zip(tokens, self.projects, self.resize_layers, strict=True):
            x = project(self.norm(x).mT.unflatten(-1, (rows, columns)))
            maps.append(resize(_with_positions(x, columns / rows) if self.has_positions else x))
        return maps


class Da3Head(DepthHead):
    """Fusion and depth head of Depth Anything 3; tensors have the published names under `head.scratch`.

    Args:
        channels: of s0..s3. fusion: channels of the fused maps. outputs: 1, or 2 with a confidence.
        is_any_view: positions are added before the last convolutions.
        focal: length in widths of the frame: depth is in meters; None: it is inverse depth.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        fusion: int,
        outputs: int,
        patch_size: int,
        is_any_view: bool,
        has_sky: bool,
        focal: float | None,
    ) -> None:
        super().__init__()
        self.patch_size, self.has_positions, self.has_sky, self.focal = patch_size, is_any_view, has_sky, focal
        for i, count in enumerate(channels, 1):
            self.add_module(f"layer{i}_rn", nn.Conv2d(count, fusion, 3, padding=1, bias=False))
            self.add_module(f"refinenet{i}", _Fusion(fusion, has_lateral=i < len(channels)))
        self.output_conv1 = nn.Conv2d(fusion, fusion // 2, 3, padding=1)
        self.output_conv2 = _last_convs(fusion // 2, outputs)
        if has_sky:
            self.sky_output_conv2 = _last_convs(fusion // 2, 1)

    def freeze_unused(self) -> None:
        """Freeze the sky: a student gives depth alone."""
        if self.has_sky:
            self.sky_output_conv2.requires_grad_(False)

    def forward(self, features: dict[str, Tensor], image_size: tuple[int, int]) -> Tensor:
        """Return inverse depth, or meters, `[B, 1, H, W]` at `image_size` = (H, W) from maps `[B, C_i, H_i, W_i]`."""
        return self.resized(self._depth(self.output_conv2(self._fused(features))), image_size)

    def maps(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return depth as `forward` and, where the model has them, sky and confidence, at the model's own size."""
        x = self._fused(features)
        logits = self.output_conv2(x)
        found = {"depth": self._depth(logits)}
        if self.has_sky:
            found["sky"] = self.sky_output_conv2(x).relu()
        if logits.shape[1] > 1:
            found["confidence"] = logits[:, 1:].float().exp() + 1
        return found

    def resized(self, x: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return a map at `image_size` = (H, W), bilinearly."""
        if x.shape[-2:] == tuple(image_size):
            return x
        return F.interpolate(x.float(), image_size, mode="bilinear", align_corners=True)

    def _depth(self, logits: Tensor) -> Tensor:
        """Return depth exp(x), times focal length / 300 px, or its inverse exp(−x), float32."""
        x = logits[:, :1].float()
        return (-x).exp() if self.focal is None else x.exp() * (self.focal * logits.shape[-1] / METRIC_FOCAL_PX)

    def _fused(self, features: dict[str, Tensor]) -> Tensor:
        """Return what depth, sky and confidence are made of, `[B, F/2, H, W]` at the model's own size."""
        maps = list(features.values())
        rows, columns = maps[2].shape[-2:]  # patches
        laterals = [self.get_submodule(f"layer{i}_rn")(x) for i, x in enumerate(maps, 1)]
        x: Tensor | None = None
        for i in range(len(maps), 0, -1):  # coarse to fine
            size = laterals[i - 2].shape[-2:] if i > 1 else tuple(2 * side for side in laterals[0].shape[-2:])
            x = self.get_submodule(f"refinenet{i}")(laterals[i - 1], x, size)
        size = (rows * self.patch_size, columns * self.patch_size)
        x = F.interpolate(self.output_conv1(x), size, mode="bilinear", align_corners=True)
        return _with_positions(x, columns / rows) if self.has_positions else x


class _Fusion(nn.Module):
    def __init__(self, width: int, has_lateral: bool) -> None:
        super().__init__()
        if has_lateral:
            self.resConfUnit1 = _Residual(width)
        self.resConfUnit2 = _Residual(width)
        self.out_conv = nn.Conv2d(width, width, 1)

    def forward(self, lateral: Tensor, coarser: Tensor | None, size: tuple[int, int]) -> Tensor:
        x = lateral if coarser is None else coarser + self.resConfUnit1(lateral)
        return self.out_conv(F.interpolate(self.resConfUnit2(x), size, mode="bilinear", align_corners=True))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x.relu()).relu())


def _last_convs(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, outputs, 1))


def _with_positions(x: Tensor, aspect: float) -> Tensor:
    """Add a tenth of the sines and cosines of each cell's place to a map `[B, C, h, w]`.

    Half of the channels are of x and half of y, in units of the half diagonal of a frame of that aspect (width over
    height), 0 in the middle; frequencies fall from 1 to 1/100.
    """
    channels, (rows, columns) = x.shape[1], x.shape[-2:]
    diagonal = (aspect**2 + 1) ** 0.5
    count = channels // 4
    rates = 100.0 ** -(torch.arange(count, device=x.device).float() / count)
    ends = ((aspect / diagonal) * (columns - 1) / columns, (1 / diagonal) * (rows - 1) / rows)
    encoded = []
    for end, cells in zip(ends, (columns, rows), strict=True):
        angles = rates[:, None] * torch.linspace(-end, end, cells, device=x.device, dtype=x.dtype).float()
        encoded.append(torch.cat([angles.sin(), angles.cos()]))  # [C/2, cells]
    of_x = encoded[0][:, None].expand(-1, rows, -1)
    of_y = encoded[1][:, :, None].expand(-1, -1, columns)
    return x + 0.1 * torch.cat([of_x, of_y]).to(x.dtype)


def block_plan(net: dict[str, Any], depth: int) -> BlockPlan:
    """Return which of `depth` blocks do what by `config.net`."""
    listed = net["out_layers"]
    if (
        not isinstance(listed, list | tuple)
        or any(type(i) is not int or not 0 <= i < depth for i in listed)
        or len(listed) != len(SCALES)
        or list(listed) != sorted(set(listed))
    ):
        raise ValueError(
            f"config.net.out_layers must be the numbers of {len(SCALES)} blocks of {depth}, ascending; got {listed!r}"
        )
    if not isinstance(net.get("cat_token", True), bool):
        raise ValueError(f"config.net.cat_token must be true or false; got {net['cat_token']!r}")
    starts = {name: net.get(name, -1) for name in ("alt_start", "qknorm_start", "rope_start")}
    for name, start in starts.items():
        if type(start) is not int or not -1 <= start < depth:
            raise ValueError(f"config.net.{name} must be the number of one of {depth} blocks, or -1; got {start!r}")
    if starts["alt_start"] >= 0 and "rope_start" not in net:  # no tensor would tell
        raise ValueError("config.net has alt_start and no rope_start")
    return BlockPlan(tuple(listed), **starts, cat_token=net.get("cat_token", True))


_NAMES = (
    ("model.backbone.pretrained.", "backbone."),
    ("model.head.scratch.", "head."),
    ("model.head.", "reassemble_stage."),
)
"""How names of tensors begin: published, and here."""


def _our_name(name: str) -> str:
    for published, ours in _NAMES:
        if name.startswith(published):
            return ours + name.removeprefix(published)
    return name


def published_name(name: str) -> str:
    """Return the name that a tensor of `DepthAnything3Encoder` has in published files."""
    for published, ours in _NAMES:
        if name.startswith(ours):
            return published + name.removeprefix(ours)
    return name


def _decides_depth(name: str) -> bool:
    """Tell whether depth would be another without a tensor: not of rays ("_aux"), cameras and Gaussians."""
    is_used = name.startswith(tuple(ours for _, ours in _NAMES)) and "_aux." not in name
    return is_used and not name.startswith("head.refinenet4.resConfUnit1.")  # never called in the first fusion


def _read_weights(name_or_path: str) -> dict[str, Tensor]:
    folder = Path(name_or_path)
    if folder.is_dir():
        verify_files(folder)
        path = folder / _WEIGHTS
    else:
        with errors_alone("huggingface_hub"):
            path = Path(hf_hub_download(name_or_path, _WEIGHTS))
    return load_tensors(path)[0]
