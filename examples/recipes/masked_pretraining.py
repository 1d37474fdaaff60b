"""Pretrain VideoMamba without labels: it sees a fifth of the patches and learns the features of a teacher.

    python examples/recipes/masked_pretraining.py --data videos --out runs/mask --teacher openai/clip-vit-base-patch16
    python examples/recipes/masked_pretraining.py --data videos --out runs/mask --frames 1 \
        --teacher depth-anything/Depth-Anything-V2-Small-hf
    torchrun --nproc-per-node 8 examples/recipes/masked_pretraining.py ...     # or: accelerate launch

--data is a folder of videos. Then --out holds masked.safetensors (family videomamba_masked, to fine-tune), or for
--frames 1 image.safetensors: `python train.py model=video_mamba model.video_mamba.pretrained=.../image.safetensors`.
"""

from __future__ import annotations

import common
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel, DepthAnythingForDepthEstimation
from video_classification import Clips

from videomamba_depth.video_mamba.backbone import MaskedVideoMamba, VideoMamba
from videomamba_depth.video_mamba.checkpoints import load_backbone


class Imitation(nn.Module):
    """A masked student and its frozen teacher, which is neither trained nor saved."""

    def __init__(self, student: MaskedVideoMamba, teacher: nn.Module, hidden_share: float) -> None:
        super().__init__()
        self.student, self.hidden_share = student, hidden_share
        object.__setattr__(self, "teacher", teacher.eval().requires_grad_(False))

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return the squared distance of unit features, averaged over the visible tokens; pixels [B, T, 3, H, W]."""
        x = pixel_values.transpose(1, 2)
        t, h, w = self.student.patch_embed.token_shape(x)
        target = F.interpolate(self.features(pixel_values.flatten(0, 1)), (h, w), mode="bilinear")  # [B·T, C, h, w]
        target = F.normalize(target, dim=1).unflatten(0, (-1, t)).permute(0, 1, 3, 4, 2).flatten(1, 3)  # [B, t·h·w, C]
        order = torch.rand(target.shape[:2], device=x.device).argsort(1)
        hidden = order >= max(1, round(t * h * w * (1 - self.hidden_share)))  # [B, t·h·w], as many in every sample
        found = self.student(x, F.pad(hidden, (1, 0), value=False))[:, 1:]  # [B, V, C], without the CLS
        return {"loss": (found - target[~hidden].view_as(found)).square().sum(-1).mean()}

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the last features of the teacher's patches as maps [N, C, rows, columns]."""
        self.teacher.to(images.device)
        rows, columns = (max(1, side // self.teacher.config.patch_size) for side in images.shape[-2:])
        size = (rows * self.teacher.config.patch_size, columns * self.teacher.config.patch_size)
        images = F.interpolate(images, size, mode="bicubic", antialias=True)
        if isinstance(self.teacher, CLIPVisionModel):
            tokens = self.teacher(images, interpolate_pos_encoding=True).last_hidden_state
        else:
            tokens = self.teacher(images).feature_maps[-1]
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))


def image_model(student: MaskedVideoMamba, depth: int) -> VideoMamba:
    """Return the model for images that reads a frame as the student does, without its last layer."""
    tensors, embed = student.state_dict(), student.patch_embed
    model = VideoMamba(embed.img_size, embed.patch_size, depth, student.embed_dim, num_classes=0)
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"].squeeze(2)
    temporal = F.pad(tensors["temporal_pos_embedding"], (0, 0, 1, 0))  # the CLS has none
    tensors["pos_embed"] = tensors["pos_embed"] + temporal.expand(-1, 2, -1)[:, [0, *[1] * embed.num_patches]]
    tensors["norm_f.weight"] = tensors["norm.weight"]
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return model


def main(arguments: list[str] | None = None) -> None:
    """Train, and write the student."""
    parser = common.parser(__doc__, epochs=800, lr=6e-4, families=["videomamba_masked"])
    parser.add_argument("--frames", type=common.number(1, kind=int), default=8)
    parser.add_argument("--teacher", required=True, help="CLIP or Depth Anything, a hub id or a folder")
    parser.add_argument("--hidden-share", type=common.number(0, 1), default=0.8)
    parser.set_defaults(layer_decay=1.0)
    args = parser.parse_args(arguments)
    kinds = {"clip": CLIPVisionModel, "clip_vision_model": CLIPVisionModel}
    teacher = common.published("--teacher", args.teacher, depth_anything=DepthAnythingForDepthEstimation, **kinds)
    teacher = getattr(teacher, "backbone", teacher)
    depth, width = common.size_of(args.variant).values()
    # The last layer of a masked student is not trained: for images there is one more, which is dropped at the end.
    options = {"depth": depth + (args.frames == 1), "embed_dim": width, "img_size": args.size}
    student = MaskedVideoMamba(teacher.config.hidden_size, args.frames, **options)
    if args.pretrained:
        load_backbone(student, args.pretrained, args.family)
    videos = Clips(args.data, None, args.frames, args.size)
    common.train(Imitation(student, teacher, args.hidden_share), args, train_dataset=videos)
    if args.frames == 1:
        common.save(image_model(student, depth), args.out / "image.safetensors")
    else:
        common.save(student, args.out / "masked.safetensors")


if __name__ == "__main__":
    common.run(main)
