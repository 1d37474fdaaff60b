"""Train a larger VideoMamba beside a smaller one that is trained already: on classes, and on its features.

    python examples/recipes/self_distillation.py --data imagenet --out runs/m --variant m --teacher-variant s \
        --teacher videomamba_s16_in1k_res224.pth
    torchrun --nproc-per-node 8 examples/recipes/self_distillation.py ...     # or: accelerate launch

Folders are those of image_classification.py. --out then holds student.safetensors (family videomamba_image, with its
distill_head; a model without teacher_dim loads it too).
"""

from __future__ import annotations

import common
import torch
from image_classification import pictures
from torch import Tensor, nn
from torch.nn import functional as F

from videomamba_depth.video_mamba.backbone import VideoMamba
from videomamba_depth.video_mamba.checkpoints import load_backbone


class Distillation(nn.Module):
    """A student and its frozen teacher, which is neither trained nor saved."""

    def __init__(self, student: VideoMamba, teacher: VideoMamba, weight: float) -> None:
        super().__init__()
        self.student, self.weight = student, weight
        object.__setattr__(self, "teacher", teacher.eval().requires_grad_(False))

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return scores and loss: cross entropy + weight · squared distance of the tokens' unit features."""
        if not self.training:
            logits = self.student(pixel_values)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}
        logits, features = self.student.forward_distill(pixel_values)  # features [B, 1 + n, C of the teacher]
        with torch.no_grad():
            target = F.normalize(self.teacher.to(pixel_values.device).forward_features(pixel_values), dim=-1)
        distance = (features - target).square().sum(-1).mean()
        return {"loss": F.cross_entropy(logits, labels) + self.weight * distance, "logits": logits}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate after every epoch, write the student, and return the last metrics."""
    parser = common.parser(__doc__, epochs=300, lr=5e-4, families=["videomamba_image"])
    parser.add_argument("--teacher", required=True, help="file of family videomamba_image")
    parser.add_argument("--teacher-variant", default="s")
    parser.add_argument("--weight", type=common.number(0), default=1.0)
    parser.set_defaults(layer_decay=1.0)
    args = parser.parse_args(arguments)
    train, val = pictures(args)
    (depth, width), (teacher_depth, teacher_width) = (
        common.size_of(variant).values() for variant in (args.variant, args.teacher_variant)
    )
    teacher = VideoMamba(args.size, depth=teacher_depth, embed_dim=teacher_width, num_classes=0)
    load_backbone(teacher, args.teacher, "videomamba_image")
    options = {"num_classes": len(train.classes), "teacher_dim": teacher_width}
    student = VideoMamba(args.size, depth=depth, embed_dim=width, **options)
    if args.pretrained:
        load_backbone(student, args.pretrained, args.family, keep_head=False)

    def collate(items: list) -> dict[str, Tensor]:
        pixels, labels = zip(*items, strict=True)
        return {"pixel_values": torch.stack(pixels), "labels": torch.tensor(labels)}

    parts = {"train_dataset": train, "eval_dataset": val, "data_collator": collate, "compute_metrics": common.accuracy}
    metrics = common.train(Distillation(student, teacher, args.weight), args, **parts)
    common.save(student, args.out / "student.safetensors")
    return metrics


if __name__ == "__main__":
    common.run(main)
