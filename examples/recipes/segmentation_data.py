"""Segmentation data: pictures in images/, masks of the same names in masks/, see semantic_segmentation.py."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from folders import files_in, read_picture
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.images import IMAGENET_MEAN, IMAGENET_STD

IGNORED = 255
"""What a mask holds where no class is."""


class Pictures(Dataset):
    """Pictures and their masks, cropped alike."""

    def __init__(self, folder: Path, size: int, is_train: bool, classes: int, reduce_labels: bool = False) -> None:
        files = [files_in(folder / kind) for kind in ("images", "masks")]
        images, masks = ({path.stem: path for path in paths} for paths in files)
        if twice := [path for paths in files for a, path in pairwise(paths) if a.stem == path.stem]:
            raise UserError(f"{twice[0]} and another file have one name before the ending; remove one")
        if alone := sorted(images.keys() ^ masks.keys()):
            raise UserError(f"{folder}: {len(alone)} pictures or masks are without the other, first {alone[0]}")
        self.classes, self.reduce_labels = classes, reduce_labels
        self.images, self.masks = ([files[name] for name in sorted(images)] for files in (images, masks))
        crop = v2.RandomResizedCrop(size, scale=(0.25, 1.0)) if is_train else v2.Resize((size, size))
        flip = [v2.RandomHorizontalFlip()] if is_train else []
        types = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
        normalize = [v2.ToDtype(types, scale=True), v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD))]
        self.transform = v2.Compose([crop, *flip, *normalize])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = tv_tensors.Image(read_picture(self.images[index]).convert("RGB"))
        mask, name = tv_tensors.Mask(read_picture(self.masks[index])).long(), self.masks[index]
        if mask.shape != (1, *image.shape[1:]):
            raise UserError(f"{name} must be of one channel and of its picture's size; got {list(mask.shape)}")
        if self.reduce_labels:
            mask = torch.where((mask == 0) | (mask == IGNORED), IGNORED, mask - 1)
        if wrong := set(mask.unique().tolist()) - {*range(self.classes), IGNORED}:
            raise UserError(f"{name} holds class {max(wrong)}; --classes {self.classes} are 0 to {self.classes - 1}")
        pixels, mask = self.transform(image, tv_tensors.Mask(mask))
        return {"pixel_values": pixels, "labels": mask[0]}
