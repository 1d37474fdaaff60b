"""Segment images with a UperNet head on Vim: folders train/images, train/masks, val/images, val/masks, names alike.

    python examples/recipes/semantic_segmentation.py --data ade20k --classes 150 --reduce-labels --out runs/seg \
        --size 512 --pretrained hustvl/Vim-tiny-midclstok --family vim
    torchrun --nproc-per-node 8 examples/recipes/semantic_segmentation.py ...     # or: accelerate launch

Masks are pictures of one channel that hold the number of each pixel's class, from 0; 255 is left out. ADE20K's hold 0
for other things and classes from 1: --reduce-labels leaves 0 out and counts from 0.
"""

from __future__ import annotations

import math
from typing import Any

import common
import torch
from segmentation_data import IGNORED, Pictures
from torch.nn import functional as F
from transformers import UperNetConfig, UperNetForSemanticSegmentation, default_data_collator

from videomamba_depth.utils.errors import UserError
from videomamba_depth.video_mamba.checkpoints import load_backbone
from videomamba_depth.video_mamba.transformers_models import VimConfig


class Segmenter(UperNetForSemanticSegmentation):
    """UperNet whose loss is 0 where no pixel of a batch has a class: a mean over none is not a number."""

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **options: Any) -> Any:
        has_classes = labels is None or bool((labels != IGNORED).any())
        output = super().forward(pixel_values, labels=labels if has_classes else torch.zeros_like(labels), **options)
        if not has_classes:
            output["loss"] = 0 * output["loss"]  # of all parameters still, which several processes wait for
        return output


def mean_iou(prediction: Any) -> dict[str, float]:
    """Mean over the classes of intersection over union, in percent, and the accuracy of pixels; nan without any."""
    found, truth = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
    valid = truth != IGNORED
    found, truth = found[valid], truth[valid]
    if not len(truth):
        return {"miou": math.nan, "pixels": math.nan}
    classes = int(max(found.max(), truth.max())) + 1
    table = torch.bincount(truth * classes + found, minlength=classes**2).view(classes, classes).double()
    union = table.sum(0) + table.sum(1) - table.diag()
    iou = (table.diag() / union)[union > 0]
    return {"miou": 100 * iou.mean().item(), "pixels": 100 * (table.diag().sum() / table.sum()).item()}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate after every epoch, and return the last metrics."""
    parser = common.parser(__doc__, epochs=64, lr=1e-4, families=["vim"])
    parser.add_argument("--classes", type=common.number(2, 255, int), required=True)
    parser.add_argument("--reduce-labels", action="store_true", help="classes count from 1; 0 is left out")
    args = parser.parse_args(arguments)
    size = common.size_of(args.variant)
    if size["num_hidden_layers"] < 4:
        raise UserError(f"--variant must have at least 4 layers, one for each scale; got {args.variant}")
    if args.batch < 2:
        raise UserError("--batch must be at least 2: the head's batch norms need two pictures")
    taps = [(index + 1) * size["num_hidden_layers"] // 4 for index in range(4)]
    config = UperNetConfig(
        backbone_config=VimConfig(image_size=args.size, **size, out_indices=taps),
        num_labels=args.classes,
        auxiliary_in_channels=size["hidden_size"],
        loss_ignore_index=IGNORED,
    )
    model = Segmenter(config)
    if args.pretrained:
        load_backbone(model.backbone.backbone, args.pretrained, args.family)
    labels = (args.classes, args.reduce_labels)
    train, val = (Pictures(args.data / split, args.size, split == "train", *labels) for split in ("train", "val"))

    def labels_of(logits: Any, labels: torch.Tensor) -> torch.Tensor:
        scores = logits[0] if isinstance(logits, tuple) else logits
        return F.interpolate(scores, labels.shape[-2:], mode="bilinear").argmax(1).byte()  # all of val are held

    def pairs(items: list) -> Any:
        """The last picture of an epoch may be alone, and batch norms need two."""
        return default_data_collator(items * 2 if len(items) == 1 else items)

    parts = {"mix": pairs, "compute_metrics": mean_iou, "preprocess_logits_for_metrics": labels_of}
    return common.train(model, args, train_dataset=train, eval_dataset=val, **parts)


if __name__ == "__main__":
    common.run(main)
