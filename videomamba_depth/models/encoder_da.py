"""The frozen Depth Anything teacher: multi-scale features and depth from one pass."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DepthAnythingForDepthEstimation, PretrainedConfig
from transformers.utils import logging as transformers_logging

from videomamba_depth.models.head_depth import DPTHead
from videomamba_depth.models.input_size import model_input_size
from videomamba_depth.utils.checkpoint import check_finite, is_lfs_pointer, verify_files
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.images import IMAGENET_MEAN, IMAGENET_STD, check_rgb, shrink_images

SCALES = ("s0", "s1", "s2", "s3")
"""Names of the four feature maps, fine to coarse: strides patch/4, patch/2, patch, 2·patch."""

EMBEDDED_TEACHER = Path(__file__).resolve().parents[1] / "assets" / "embedded_teacher"
"""The small teacher that is shipped with the package."""

_PICKLED = (".pth", ".pt", ".ckpt", ".bin")  # suffixes of files that would have to be unpickled


class DepthAnythingEncoder(nn.Module):
    """A frozen Depth Anything V1/V2 checkpoint, split where the temporal model goes in.

    `encode_frame` ends after the DPT *reassemble* stage; `decode` runs the rest (fusion and head). Every parameter is
    frozen and the module stays in eval mode.

    Preprocessing (as transformers' image processor of Depth Anything: cubic resize, antialiased where it shrinks, sides
    rounded to multiples of the patch, ImageNet mean and std): the short side becomes `input_size`, the aspect ratio is
    kept; with `input_size=None` each side is rounded to the nearest multiple of the patch. Depth comes back at the size
    of the input, bilinearly (corners aligned, as the official code).

    Attributes:
        depth_kind: what the depth means, see `DepthKind`.
        max_depth_m: upper bound of metric checkpoints in metres; None for relative ones.
        patch_size: side of a ViT patch in px.
        channels: channels of s0..s3.
    """

    frozen = True
    mean: Tensor
    std: Tensor

    def __init__(self, model: DepthAnythingForDepthEstimation, model_id: str, input_size: int | None = None) -> None:
        super().__init__()
        config = model.config
        self.model_id, self.input_size = model_id, input_size
        self.hf_config = config
        self.patch_size: int = config.patch_size
        self.channels: tuple[int, ...] = tuple(config.neck_hidden_sizes)
        if len(self.channels) != len(SCALES):
            raise ValueError(f"neck_hidden_sizes must hold {len(SCALES)} numbers; got {list(self.channels)}")
        metric = config.depth_estimation_type == "metric"
        self.depth_kind = DepthKind.METRIC if metric else DepthKind.RELATIVE
        max_depth = _max_depth(config.max_depth)
        self.max_depth_m: float | None = max_depth if metric else None
        self.backbone = model.backbone
        self.reassemble_stage = model.neck.reassemble_stage
        self.head = DPTHead.from_transformers(model)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, dtype: torch.dtype = torch.float32, input_size: int | None = None
    ) -> DepthAnythingEncoder:
        """Load a checkpoint of transformers (safetensors only).

        Args:
            name_or_path: hub id, local folder, or "embedded" for the small teacher that is shipped.
            dtype: of the weights: float32, bfloat16 or float16.
            input_size: see the class.

        Raises:
            UserError: no such folder or id, no network, not a Depth Anything model, or broken weights.
        """
        source = str(EMBEDDED_TEACHER) if name_or_path == "embedded" else name_or_path
        _check_is_depth_anything(source)
        if Path(source).is_dir():
            verify_files(Path(source))
        try:
            with _no_bar() if Path(source).is_dir() else nullcontext(), _errors_alone("transformers"):
                model, report = DepthAnythingForDepthEstimation.from_pretrained(
                    source,
                    dtype=dtype,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are named below, in one line
                )
        except Exception as error:  # transformers raises OSError, ValueError, RuntimeError and SafetensorError here
            raise _loading_error(name_or_path, error) from error
        missing = sorted(report["missing_keys"])
        missing += [f"{name} {list(is_)} for {list(wanted)}" for name, is_, wanted in sorted(report["mismatched_keys"])]
        if missing:
            raise UserError(
                f"the weights of '{name_or_path}' do not fit its config: {len(missing)} tensors missing or of another"
                f" shape, first {missing[0]}; restore the config.json that came with them, or download them again"
            )
        check_finite(dict(model.named_parameters()), f"'{name_or_path}' cannot be used")
        try:
            encoder = cls(model, name_or_path, input_size)
            encoder.check_runs()
            return encoder
        except Exception as error:  # a config.json that makes no sense
            raise _loading_error(name_or_path, error) from error

    def check_runs(self) -> None:
        """Run one frame of 2 × 2 patches: what does not fit in a config shows here, not at the first step.

        Raises:
            ValueError: the depth has another shape. Other errors as the parts of the model raise them.
        """
        side = 2 * self.patch_size
        depth = self.decode(self.encode_pixels(self.mean.new_zeros(1, 3, side, side)), (side, side))
        if depth.shape != (1, 1, side, side):
            raise ValueError(f"its depth of a frame of {side} × {side} px has shape {list(depth.shape)}")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a copy that `from_pretrained`, ours and transformers', can load."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.hf_config.save_pretrained(folder)
        weights = {_hf_name(name): t.contiguous().cpu() for name, t in self.state_dict().items()}
        save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})

    def train(self, mode: bool = True) -> DepthAnythingEncoder:
        """Stay in eval mode: the teacher is frozen."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.backbone.parameters()).dtype

    def input_resolution(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in px that a frame of that size is resized to, see `model_input_size`."""
        return model_input_size(height, width, self.input_size, self.patch_size)

    def feature_sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        """Return the (height, width) of s0..s3 for a frame of that size, without running anything."""
        rows, columns = (side // self.patch_size for side in self.input_resolution(height, width))
        sizes = {}
        for name, factor in zip(SCALES, self.hf_config.reassemble_factors, strict=True):
            # Factors below 1 are 3x3 convolutions of stride 1/factor and padding 1: they round up.
            sizes[name] = (math.ceil(rows * factor), math.ceil(columns * factor))
        return sizes

    @torch.no_grad()
    def encode_frame(self, rgb: Tensor) -> dict[str, Tensor]:
        """Return the reassembled DPT features s0..s3, each `[B, C_i, H_i, W_i]`.

        Args:
            rgb: `[B, 3, H, W]` in [0, 1], any size.

        Raises:
            ValueError: see `check_rgb`.
        """
        check_rgb(rgb)
        height, width = self.input_resolution(*rgb.shape[-2:])
        pixels = (shrink_images(rgb.to(self.mean.dtype), (height, width)) - self.mean) / self.std
        if (height, width) != pixels.shape[-2:]:  # it grows
            pixels = F.interpolate(pixels, (height, width), mode="bicubic", align_corners=False)
        return self.encode_pixels(pixels)

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> dict[str, Tensor]:
        """Do the part of `encode_frame` that is worth compiling.

        Args:
            pixels: `[B, 3, H, W]` normalised, sides multiples of the patch.
        """
        height, width = pixels.shape[-2:]
        hidden = self.backbone.forward_with_filtered_kwargs(pixels.to(self.dtype)).feature_maps
        maps = self.reassemble_stage(hidden, height // self.patch_size, width // self.patch_size)
        return dict(zip(SCALES, maps, strict=True))

    @torch.no_grad()
    def decode(self, features: dict[str, Tensor], image_size: tuple[int, int]) -> Tensor:
        """Return the teacher's depth `[B, 1, H, W]` from its features, at `image_size` = (H, W)."""
        return self.head(features, image_size)

    def predict_depth(self, rgb: Tensor) -> Tensor:
        """Return the depth `[B, 1, H, W]` of frames `[B, 3, H, W]` in [0, 1]; its unit is `depth_kind`."""
        return self.decode(self.encode_frame(rgb), (rgb.shape[-2], rgb.shape[-1]))

    def weights_sha256(self) -> str:
        """Return a digest of all weights, independent of where and in which dtype they are stored in memory."""
        return hash_tensors(self.state_dict().items())

    def cache_key(self) -> dict[str, str | int | None]:
        """Return what decides the labels that this teacher gives to a frame."""
        return {
            "model_id": self.model_id,
            "weights_sha256": self.weights_sha256(),
            "input_size": self.input_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "depth_kind": self.depth_kind.value,
        }


def _hf_name(name: str) -> str:
    """Return transformers' name of a tensor of `DepthAnythingEncoder`."""
    for ours, theirs in (
        ("head.head.", "head."),
        ("head.", "neck."),
        ("reassemble_stage.", "neck.reassemble_stage."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def hash_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 of names, shapes and float32 values, in order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def _max_depth(value: object) -> float:
    """Check the factor of the depth: metres in a metric checkpoint, without a unit (usually 1) in a relative one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"max_depth must be a positive number (metres in a metric checkpoint); got {value}")
    return float(value)


def _converted(name_or_path: str) -> str:
    """Return the id of the converted checkpoint for the name of an original PyTorch file."""
    name = name_or_path.lower()
    size = next((word for mark, word in (("vitl", "Large"), ("vitb", "Base")) if mark in name), "Small")
    scene = {"hypersim": "-Metric-Indoor", "vkitti": "-Metric-Outdoor"}
    metric = next((text for mark, text in scene.items() if mark in name), "")
    if "v2" in name or metric:
        return f"depth-anything/Depth-Anything-V2{metric}-{size}-hf"
    return f"LiheYoung/depth-anything-{size.lower()}-hf"


def _check_is_depth_anything(name_or_path: str) -> None:
    folder = Path(name_or_path)
    original = [folder] if folder.suffix in _PICKLED else []
    if folder.is_dir() and not (folder / "config.json").is_file():
        original = sorted(file for file in folder.iterdir() if file.suffix in _PICKLED)
    if original:
        raise UserError(
            f"'{original[0]}' is a PyTorch file of the original code, which is not read; use the converted checkpoint:"
            f" teacher.name={_converted(original[0].name)}"
        )
    if folder.is_file():
        raise UserError(f"'{folder}' is a file; give the folder that holds config.json and model.safetensors")
    for name in ("config.json", "model.safetensors"):
        if is_lfs_pointer(folder / name):
            raise UserError(f"'{folder / name}' is a Git LFS pointer, not the file; run git lfs pull in '{folder}'")
    looks_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if looks_local and not Path(name_or_path).is_dir():
        raise UserError(f"folder '{name_or_path}' does not exist; give a folder with config.json or a hub id")
    try:
        with _errors_alone("huggingface_hub"):
            config, _ = PretrainedConfig.get_config_dict(name_or_path)
    except Exception as error:  # OSError of many kinds, HTTP errors, broken JSON
        raise _loading_error(name_or_path, error) from error
    if not config:
        raise _loading_error(name_or_path, FileNotFoundError("no config.json"))
    if config.get("model_type") != "depth_anything":
        raise UserError(
            f"'{name_or_path}' is a '{config.get('model_type')}' model, not Depth Anything; use a checkpoint such as"
            " depth-anything/Depth-Anything-V2-Small-hf"
        )


@contextmanager
def _errors_alone(library: str) -> Iterator[None]:
    """Silence a library's line per retry and its reports of many lines: a failure becomes one clear line of ours."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _no_bar() -> Iterator[None]:
    """Show no progress of what takes a moment, as reading a folder does; a download keeps its bars."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def _loading_error(name_or_path: str, error: Exception) -> UserError:
    if Path(name_or_path).is_dir():
        return UserError(
            f"cannot load a Depth Anything checkpoint from folder '{name_or_path}' ({_first_line(error)}); it must hold"
            " config.json and model.safetensors as written by save_pretrained"
        )
    causes = " ".join(type(cause).__name__ + " " + str(cause) for cause in _cause_chain(error))
    if any(
        word in causes for word in ("ConnectError", "ConnectionError", "couldn't connect", "OfflineMode", "Timeout")
    ):
        return UserError(
            f"no network to download teacher '{name_or_path}' and it is not in the local cache; connect once, or set"
            " teacher.name to a local folder (teacher=embedded needs no download)"
        )
    return UserError(
        f"teacher '{name_or_path}' is neither a local folder nor a model id that the hub knows ({_first_line(error)});"
        " check the spelling, e.g. depth-anything/Depth-Anything-V2-Small-hf"
    )


def _cause_chain(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
