"""Fine-tune Vim or VideoMamba on images: folders train/CLASS/*.jpg and val/CLASS/*.jpg, as ImageNet's.

    python examples/recipes/image_classification.py --data imagenet --out runs/vim --family vim \
        --pretrained hustvl/Vim-tiny-midclstok
    torchrun --nproc-per-node 8 examples/recipes/image_classification.py ...     # or: accelerate launch

Published augmentations by torchvision: random resized crop, flip, RandAugment, erasing, mixup, CutMix; label smoothing.
"""

from __future__ import annotations

import argparse
from typing import Any

import common
import torch
from folders import Images
from torch.nn import functional as F
from torchvision.transforms import v2

from videomamba_depth.utils.images import IMAGENET_MEAN, IMAGENET_STD
from videomamba_depth.video_mamba.transformers_models import (
    VideoMambaConfig,
    VideoMambaForImageClassification,
    VimConfig,
    VimForImageClassification,
)


def transforms(size: int) -> tuple[v2.Compose, v2.Compose]:
    """Return those of training and of evaluation."""
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD))]
    cubic = v2.InterpolationMode.BICUBIC
    start = [v2.RGB(), v2.RandomResizedCrop(size, interpolation=cubic), v2.RandomHorizontalFlip(), v2.RandAugment()]
    evaluation = [v2.RGB(), v2.Resize(round(size * 256 / 224), interpolation=cubic), v2.CenterCrop(size)]
    return v2.Compose([*start, *end, v2.RandomErasing(0.25)]), v2.Compose([*evaluation, *end])


def pictures(args: argparse.Namespace) -> tuple[Images, Images]:
    """Return those to train on and those to evaluate, whose classes have the same numbers."""
    for_training, for_evaluation = transforms(args.size)
    train = Images(args.data / "train", for_training)
    return train, Images(args.data / "val", for_evaluation, train.classes)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate after every epoch, and return the last metrics."""
    parser = common.parser(__doc__, epochs=30, lr=5e-4, families=["vim", "videomamba_image"])
    parser.add_argument("--smoothing", type=common.number(0, 1), default=0.1)
    parser.add_argument("--no-mixup", action="store_true")
    args = parser.parse_args(arguments)
    train, val = pictures(args)
    classes = train.classes
    model = build(args, classes)
    mixing = v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=len(classes)), v2.CutMix(num_classes=len(classes))])

    def collate(items: list[Any]) -> dict[str, torch.Tensor]:
        pixels, labels = zip(*items, strict=True)
        return {"pixel_values": torch.stack(pixels), "labels": torch.tensor(labels)}

    def mix(items: list[Any]) -> dict[str, torch.Tensor]:
        batch = collate(items)
        if args.no_mixup or len(items) == 1:
            return batch
        return dict(zip(batch, mixing(*batch.values()), strict=True))

    def loss(outputs: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:
        return F.cross_entropy(outputs["logits"], labels, label_smoothing=args.smoothing)

    return common.train(
        model,
        args,
        train_dataset=train,
        eval_dataset=val,
        data_collator=collate,
        mix=mix,
        compute_loss_func=loss,
        compute_metrics=common.accuracy,
    )


def build(args: argparse.Namespace, classes: list[str]) -> Any:
    """Return the classifier, from a file of weights if one is named."""
    options = {"image_size": args.size, **common.size_of(args.variant), **common.labels(classes)}
    if args.family == "videomamba_image":
        model: Any = VideoMambaForImageClassification(VideoMambaConfig(num_frames=None, **options))
    else:
        model = VimForImageClassification(VimConfig(**options))
    if args.pretrained:
        model.load_published(args.pretrained, args.family, keep_head=False)
    return model


if __name__ == "__main__":
    common.run(main)
