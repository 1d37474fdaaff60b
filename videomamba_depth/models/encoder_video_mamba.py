"""A VideoMamba image backbone as the student's encoder, in place of Depth Anything's: it learns with the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from videomamba_depth.models.encoder_da import SCALES, FrameEncoder
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.settings import choice, derived, path, ranged
from videomamba_depth.video_mamba.backbone import VideoMamba
from videomamba_depth.video_mamba.checkpoints import load_backbone
from videomamba_depth.video_mamba.variants import VARIANTS


@dataclass(frozen=True)
class VideoMambaSpec:
    """Size of the backbone of a `VideoMambaEncoder`; the other options are those of the published image models.

    Attributes:
        variant: one of the published sizes, see `VARIANTS`.
        num_layers, embed_dim: depth, at least one layer per scale, and width; None: the variant's.
        img_size: px, side of the square frames that the position table is made for; other sizes may be fed.
        pretrained: a VideoMamba image file to start from, official or ours, see `load_backbone`; None: random weights.
        patch_size: px.
        backend: scan backend; None chooses.
    """

    variant: str = choice(*VARIANTS, default="t")
    num_layers: int | None = ranged(4, 256, None)
    embed_dim: int | None = ranged(8, 2048, None)
    img_size: int = ranged(16, 2048, 224)
    pretrained: str | None = path(None)
    patch_size: int = derived(16)
    backend: str | None = derived(None)

    def build(self) -> VideoMamba:
        """Return the backbone.

        Raises:
            CheckpointError: `pretrained` does not fit.
        """
        size = VARIANTS[self.variant]
        backbone = VideoMamba(
            img_size=self.img_size,
            patch_size=self.patch_size,
            depth=self.num_layers or size.depth,
            embed_dim=self.embed_dim or size.embed_dim,
            num_classes=0,
            ssm_cfg={"backend": self.backend},
        )
        if self.pretrained is not None:
            # A file with a classifier brings it along; here there is none to put it in.
            load_backbone(backbone, self.pretrained, "videomamba_image", keep_head=False)
        return backbone


class VideoMambaEncoder(FrameEncoder):
    """Four feature maps per frame from a VideoMamba image backbone, trained with the rest.

    Each frame is read by itself, in both directions, and nothing is carried here: the temporal stacks hold the whole
    state of a stream. So published image weights can start it, a frame's own patches all see each other, and any split
    of a clip gives the same. (A causal backbone over frames would see half of each frame and could start from no
    published file.)

    Maps after four layers, evenly spaced, are projected and resampled as in DPT's reassemble stage (Ranftl et al.,
    arXiv 2103.13413, section 3.1). Everything is trainable; it learns what the teacher's encoder knows by distillation,
    so that unlike a student on the teacher's own encoder it does not start as the teacher.

    Args:
        backbone: a `VideoMamba` for images of at least 4 layers; its classifier is not used (num_classes=0).
        channels: channels of s0..s3.
        depth_kind: what the depth means that the student learns; the teacher's.
        short_side, max_depth_m: see `FrameEncoder`.
    """

    frozen = False

    def __init__(
        self,
        backbone: VideoMamba,
        channels: tuple[int, ...],
        depth_kind: DepthKind,
        short_side: int | None = None,
        max_depth_m: float | None = None,
    ) -> None:
        if backbone.is_video or backbone.depth < 4:
            raise ValueError("the encoder needs a VideoMamba for images (num_frames=None) of at least 4 layers")
        patch = backbone.patch_embed.patch_size[0]
        super().__init__(backbone, tuple(channels), (4, 2, 1, 0.5), patch, depth_kind, max_depth_m, short_side)
        self.spec: VideoMambaSpec | None = None
        backbone.norm_f.requires_grad_(False)  # takes no part: the maps are taken before it
        self.taps = tuple((index + 1) * backbone.depth // 4 - 1 for index in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(backbone.embed_dim) for _ in SCALES)
        self.projections = nn.ModuleList(nn.Conv2d(backbone.embed_dim, c, 1) for c in channels)
        fine, middle, _, coarse = channels
        self.resamplers = nn.ModuleList(
            [
                nn.ConvTranspose2d(fine, fine, 4, stride=4),
                nn.ConvTranspose2d(middle, middle, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(coarse, coarse, 3, stride=2, padding=1),
            ]
        )

    @classmethod
    def from_spec(
        cls,
        spec: VideoMambaSpec,
        channels: tuple[int, ...],
        depth_kind: DepthKind,
        short_side: int | None = None,
        max_depth_m: float | None = None,
    ) -> VideoMambaEncoder:
        """Build an encoder of a given size.

        Raises:
            CheckpointError: `spec.pretrained` does not fit.
        """
        encoder = cls(spec.build(), channels, depth_kind, short_side, max_depth_m)
        encoder.spec = spec
        return encoder

    def description(self) -> dict[str, Any]:
        """Return JSON values that `from_description` builds the same encoder from, without its weights."""
        if self.spec is None:
            raise ValueError(
                "only an encoder made by from_spec can be described; this one got its backbone from outside"
            )
        about = {"channels": list(self.channels), "depth_kind": self.depth_kind.value, "max_depth_m": self.max_depth_m}
        return {"spec": asdict(replace(self.spec, pretrained=None)), **about}

    @classmethod
    def from_description(cls, about: dict[str, Any], short_side: int | None) -> VideoMambaEncoder:
        """Undo `description`."""
        kind, spec = DepthKind(about["depth_kind"]), VideoMambaSpec(**about["spec"])
        return cls.from_spec(spec, tuple(about["channels"]), kind, short_side, about["max_depth_m"])

    def encode_pixels(self, pixels: Tensor) -> dict[str, Tensor]:
        """Run the backbone and bring four of its layers to their scales, see `FrameEncoder.encode_pixels`."""
        features = {}
        streams = self.backbone.dense_features(pixels, self.taps)  # 4 × [B, D, h, w], one cell per patch
        for name, x, norm, project, resample in zip(
            SCALES, streams, self.norms, self.projections, self.resamplers, strict=True
        ):
            tokens = norm(x.movedim(1, -1).to(self.dtype))
            features[name] = resample(project(tokens.movedim(-1, 1)))  # [B, C_i, H_i, W_i]
        return features
