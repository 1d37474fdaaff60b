"""Detection data in COCO's format: data/SPLIT.json beside the pictures in data/SPLIT/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from folders import read_picture
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2 import functional as tv

from videomamba_depth.utils.errors import UserError


class Coco(Dataset):
    """Pictures with boxes, classes from 1 and masks; crowds, and boxes without an area in the picture, are left out.

    known: names of the training data's categories by id, in whose order classes are numbered; None: data to train on.
    """

    def __init__(self, data: Path, split: str, known: dict[int, str] | None = None) -> None:
        self.path, place = data / f"{split}.json", "its images or categories"
        try:
            content = json.loads(self.path.read_text(encoding="utf-8-sig"))
            self.folder, self.images = data / split, [(image["id"], image["file_name"]) for image in content["images"]]
            own = {item["id"]: str(item.get("name", item["id"])) for item in content["categories"]}
            self.names = own if known is None else known
            if unknown := [name for number, name in own.items() if self.names.get(number) != name]:
                raise UserError(f"{self.path} has categories that the training data lack: {', '.join(unknown[:10])}")
            labels = {number: label for label, number in enumerate(self.names, 1)}
            self.objects: dict[int, list[dict[str, Any]]] = {number: [] for number, _ in self.images}
            for item in content["annotations"]:
                place = f"annotation {item.get('id')}"
                if not item.get("iscrowd"):
                    x, y, width, height = map(float, item["bbox"])
                    found = {"id": item["id"], "label": labels[item["category_id"]], "shape": item["segmentation"]}
                    self.objects[item["image_id"]].append({**found, "box": (x, y, x + width, y + height)})
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}; see --help for --data") from error
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{self.path} is not in COCO's format, {place}: {type(error).__name__}: {error}") from error
        if not self.images or not own:
            raise UserError(f"{self.path} lists no {'categories' if self.images else 'images'}")
        if len(own) < len(content["categories"]):
            raise UserError(f"{self.path} has two categories of one id")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, name = self.images[index]
        picture = read_picture(self.folder / name).convert("RGB")
        boxes = torch.tensor([item["box"] for item in self.objects[number]], dtype=torch.float32).view(-1, 4)
        boxes = clip_boxes_to_image(boxes, (picture.height, picture.width))
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
        objects = [item for item, kept in zip(self.objects[number], keep.tolist(), strict=True) if kept]
        masks = [read_mask(item["shape"], picture.size, f"{self.path}, annotation {item['id']}") for item in objects]
        target = {
            "boxes": boxes[keep],
            "labels": torch.tensor([item["label"] for item in objects], dtype=torch.int64),
            "masks": torch.stack(masks) if masks else torch.zeros(0, picture.height, picture.width, dtype=torch.uint8),
        }
        return {"images": tv.to_dtype(tv.pil_to_tensor(picture), torch.float32, scale=True), "targets": target}


def read_mask(shape: Any, size: tuple[int, int], place: str) -> Tensor:
    """Return the mask `[H, W]` uint8 of polygons, or of run lengths, listed or packed as pycocotools does."""
    try:
        if isinstance(shape, dict):
            if list(shape.get("size", size[::-1])) != [size[1], size[0]]:
                raise ValueError(f"its size is {shape['size']}, rows and columns")
            lengths = shape["counts"] if isinstance(shape["counts"], list) else unpack(shape["counts"])
            flat = np.repeat(np.arange(len(lengths), dtype=np.uint8) % 2, lengths)  # down the columns, from zeros on
            return torch.from_numpy(flat.reshape(size).T.copy())
        drawn = Image.new("L", size)
        for polygon in shape:
            ImageDraw.Draw(drawn).polygon(polygon, fill=1)
        return tv.pil_to_tensor(drawn)[0]
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{place}: its segmentation is no mask of {size[0]}x{size[1]} px: {error}") from error


def unpack(packed: str) -> list[int]:
    """Return the run lengths of pycocotools' text, see rleFrString in its maskApi.c.

    A character has six bits; from the fourth on, a length is a difference to the last but one.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in packed.encode():
        digit = character - 48
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:  # the last character of a length; its sign is bit 4
            value -= (digit & 16) and 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return lengths
