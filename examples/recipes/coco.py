"""Detection data in COCO's format: data/SPLIT.json beside the pictures in data/SPLIT/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tv


class Coco(Dataset):
    """Pictures with boxes, classes from 1 and masks."""

    def __init__(self, data: Path, split: str) -> None:
        content = json.loads((data / f"{split}.json").read_text())
        self.folder, self.images = data / split, content["images"]
        self.numbers = {item["id"]: number for number, item in enumerate(content["categories"], 1)}
        self.objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self.images}
        for item in content["annotations"]:
            if not item.get("iscrowd"):
                self.objects[item["image_id"]].append(item)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = Image.open(self.folder / self.images[index]["file_name"]).convert("RGB")
        objects = self.objects[self.images[index]["id"]]
        boxes = torch.tensor([item["bbox"] for item in objects], dtype=torch.float32).view(-1, 4)
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)  # x, y, width, height -> two corners
        masks = torch.zeros(len(objects), picture.height, picture.width, dtype=torch.uint8)
        for mask, item in zip(masks, objects, strict=True):
            drawn = Image.new("L", picture.size)
            for polygon in item["segmentation"]:
                ImageDraw.Draw(drawn).polygon(polygon, fill=1)
            mask.copy_(tv.pil_to_tensor(drawn)[0])
        labels = torch.tensor([self.numbers[item["category_id"]] for item in objects], dtype=torch.int64)
        target = {"boxes": boxes, "labels": labels, "masks": masks}
        return {"images": tv.to_dtype(tv.pil_to_tensor(picture), torch.float32, scale=True), "targets": target}
