"""Detect and segment objects: torchvision's Mask R-CNN on Vim and a simple feature pyramid; data in COCO's format.

    python examples/recipes/detection.py --data coco --out runs/det --size 1024 --family vim \
        --pretrained hustvl/Vim-tiny-midclstok
    torchrun --nproc-per-node 8 examples/recipes/detection.py ...     # or: accelerate launch

--data holds train.json, val.json and the pictures in train/ and val/. With torchmetrics and pycocotools installed, the
mean average precision of boxes and masks on val is printed at the end.
"""

from __future__ import annotations

import argparse
import math

import common
import torch
from coco import Coco
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from transformers import AutoBackbone

from videomamba_depth.video_mamba.checkpoints import load_backbone
from videomamba_depth.video_mamba.transformers_models import VimConfig


class Pyramid(nn.Module):
    """A simple feature pyramid (Li et al., arXiv 2203.16527): the last map at 4, 2, 1 and ½ times its size."""

    def __init__(self, backbone: nn.Module, channels: int, width: int = 256) -> None:
        super().__init__()
        self.backbone, self.out_channels = backbone, width
        up = lambda: nn.ConvTranspose2d(channels, channels, 2, 2)  # noqa: E731
        scales: tuple[list[nn.Module], ...] = ([up(), nn.GELU(), up()], [up()], [], [nn.MaxPool2d(2)])
        ends = ([nn.Conv2d(channels, width, 1), nn.Conv2d(width, width, 3, padding=1)] for _ in scales)
        self.scales = nn.ModuleList(nn.Sequential(*scale, *end) for scale, end in zip(scales, ends, strict=True))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        (features,) = self.backbone(x).feature_maps
        return {str(index): scale(features) for index, scale in enumerate(self.scales)}


class Detector(nn.Module):
    """Mask R-CNN whose losses are one."""

    def __init__(self, args: argparse.Namespace, classes: int) -> None:
        super().__init__()
        size = common.size_of(args.variant)
        backbone = AutoBackbone.from_config(VimConfig(image_size=args.size, **size))
        if args.pretrained:
            load_backbone(backbone.backbone, args.pretrained, args.family)
        pyramid = Pyramid(backbone, size["hidden_size"])
        anchors = AnchorGenerator(((32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 4)
        sizes = {"min_size": args.size, "max_size": args.size}
        self.detector = MaskRCNN(pyramid, classes, rpn_anchor_generator=anchors, **sizes)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"loss": sum(self.detector(images, targets).values())}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, and return the mean average precision on val where torchmetrics is installed."""
    args = common.parser(__doc__, epochs=12, lr=1e-4, families=["vim"]).parse_args(arguments)
    train = Coco(args.data, "train")
    val = Coco(args.data, "val", train.names)
    model = Detector(args, 1 + len(train.names))
    collate = lambda items: {name: [item[name] for item in items] for name in ("images", "targets")}  # noqa: E731
    common.train(model, args, train_dataset=train, data_collator=collate)
    return evaluate(model.eval(), val) if common.is_first_process() else {}


@torch.no_grad()
def evaluate(model: Detector, data: Coco) -> dict[str, float]:
    """Return COCO's mean average precision of boxes and masks, in percent; nan where there are no objects."""
    try:
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(iou_type=("bbox", "segm"), sync_on_compute=False)
    except ImportError as error:
        print(f"no mean average precision: {error}")
        return {}
    device = next(model.parameters()).device
    for item in data:
        (found,) = model.detector([item["images"].to(device)])
        found = {name: tensor.cpu() for name, tensor in found.items()} | {"masks": found["masks"][:, 0].cpu() > 0.5}
        metric.update([found], [{**item["targets"], "masks": item["targets"]["masks"].bool()}])
    result = metric.compute()
    means = {name: result[name].item() for name in ("bbox_map", "segm_map")}
    return {name: 100 * mean if mean >= 0 else math.nan for name, mean in means.items()}


if __name__ == "__main__":
    common.run(main)
