"""Draw a small data set for every recipe: pictures and clips of five shapes, and a CLIP with random weights.

    python examples/recipes/draw_data.py --out runs/drawn

--out then holds `shapes` (image_classification.py, self_distillation.py, mmengine_classification.py), `scenes`
(semantic_segmentation.py, 6 classes), `coco` (detection.py), `motions` (video_classification.py, masked_pretraining.py,
video_text_retrieval.py) and `clip`, in the published format. One seed draws the same pictures again.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from videomamba_depth.data.video.writer import VideoWriter

SHAPES = {"circle": [1] * 24, "triangle": [1] * 3, "square": [1] * 4, "star": [1, 0.45] * 5, "blade": [1, 0.3] * 2}
"""Distances of the corners from the middle, in radii, at equal angles."""
COLORS = {"red": (220, 50, 50), "green": (50, 190, 70), "blue": (60, 90, 230), "yellow": (230, 210, 50)}
MOTIONS = {"rises": (-1, 1), "falls": (1, 1), "grows": (0, 2.2), "shrinks": (0, 1 / 2.2)}
"""Way down in radii, and the factor of the size, over a clip; no motion is another one mirrored."""
FRAMES, FPS = 12, 12


class Object:
    """A shape of some color at some place, turned a little."""

    def __init__(self, rng: np.random.Generator, px: int, shape: str = "", color: str = "") -> None:
        self.shape = shape or str(rng.choice(list(SHAPES)))
        self.color = COLORS[color or str(rng.choice(list(COLORS)))]
        self.radius, self.angle = rng.uniform(0.12, 0.25) * px, rng.uniform(-0.4, 0.4)
        self.x, self.y = rng.uniform(self.radius, px - self.radius, 2)

    def corners(self, down: float = 0.0, factor: float = 1.0) -> list[tuple[float, float]]:
        """Return the corners in px, (x, y), after a way down in radii and a change of size."""
        lengths = np.array(SHAPES[self.shape]) * self.radius * factor
        angles = self.angle + 2 * np.pi * np.arange(len(lengths)) / len(lengths)
        x, y = self.x + lengths * np.sin(angles), self.y + down * self.radius - lengths * np.cos(angles)
        return list(zip(x.tolist(), y.tolist(), strict=True))


def background(rng: np.random.Generator, px: int) -> Image.Image:
    """Return a noisy slope of gray."""
    slope = np.add.outer(*(np.linspace(0, rng.uniform(-40, 40), px) for _ in range(2))) + rng.uniform(80, 170)
    return Image.fromarray(np.clip(slope[..., None] + rng.normal(0, 12, (px, px, 3)), 0, 255).astype(np.uint8))


def draw_shapes(rng: np.random.Generator, out: Path, count: int, px: int) -> None:
    """Write pictures of one object, in folders of shapes, and one more of each shape that chance left out."""
    lacking = list(SHAPES)
    for index in itertools.count():
        if index >= count and not lacking:
            break
        one, picture = Object(rng, px, lacking[0] if index >= count else ""), background(rng, px)
        lacking = [shape for shape in lacking if shape != one.shape]
        ImageDraw.Draw(picture).polygon(one.corners(), fill=one.color)
        (out / one.shape).mkdir(parents=True, exist_ok=True)
        picture.save(out / one.shape / f"{index:04d}.png")


def draw_scenes(rng: np.random.Generator, out: Path, split: str, count: int, px: int) -> None:
    """Write pictures of two or three objects, the last in front, with masks of classes, and in COCO's format."""
    numbers = {name: number for number, name in enumerate(SHAPES, 1)}
    content: dict[str, list] = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": name} for name, number in numbers.items()]
    folders = [out / "scenes" / split / "images", out / "coco" / split, out / "scenes" / split / "masks"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        name, picture, mask = f"{index:04d}.png", background(rng, px), Image.new("L", (px, px))
        for one in [Object(rng, px) for _ in range(rng.integers(2, 4))]:
            polygon, number = one.corners(), numbers[one.shape]
            ImageDraw.Draw(picture).polygon(polygon, fill=one.color)
            ImageDraw.Draw(mask).polygon(polygon, fill=number)
            (left, top), (right, bottom) = np.min(polygon, 0).tolist(), np.max(polygon, 0).tolist()
            item = {"id": len(content["annotations"]), "image_id": index, "category_id": number}
            box = {"bbox": [left, top, right - left, bottom - top], "segmentation": [np.ravel(polygon).tolist()]}
            content["annotations"].append({**item, **box, "iscrowd": 0})
        for folder, image in zip(folders, (picture, picture, mask), strict=True):
            image.save(folder / name)
        content["images"].append({"id": index, "file_name": name, "width": px, "height": px})
    (out / "coco" / f"{split}.json").write_text(json.dumps(content))


def draw_motions(rng: np.random.Generator, out: Path, split: str, copies: int, px: int) -> None:
    """Write clips of every color, shape and motion, in folders of motions, and their descriptions."""
    lines = []
    for number, (motion, color, shape) in enumerate([*itertools.product(MOTIONS, COLORS, SHAPES)] * copies):
        one, still, (down, factor) = Object(rng, px, shape, color), background(rng, px), MOTIONS[motion]
        path = Path(split, motion, f"{number:04d}.mp4")
        with VideoWriter(out / path, size=(px, px), fps=FPS) as video:
            for t in np.linspace(0, 1, FRAMES):
                frame = still.copy()
                ImageDraw.Draw(frame).polygon(one.corners(t * down, factor**t), fill=one.color)
                video.write(np.asarray(frame))
        lines.append(f"{path}\ta {color} {shape} {motion}\n")
    (out / f"{split}.tsv").write_text("".join(lines))


def save_clip(out: Path, px: int) -> None:
    """Write a small CLIP of random weights that knows the descriptions' words."""
    words = ["[PAD]", "[UNK]", "[END]", "a", *COLORS, *SHAPES, *MOTIONS]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 2)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[END]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=8, **special).save_pretrained(out)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
    ends = {"bos_token_id": 3, "eos_token_id": 2, "pad_token_id": 0}
    text = {**size, "vocab_size": len(words), "max_position_embeddings": 8, **ends}
    CLIPModel(CLIPConfig(text_config=text, vision_config={**size, "image_size": px, "patch_size": 16})).save_pretrained(
        out
    )


def main(arguments: list[str] | None = None) -> None:
    """Write everything."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--px", type=int, default=64, help="side of pictures and clips")
    options.add_argument("--pictures", type=int, default=800, help="to train on; a quarter as many to evaluate")
    options.add_argument("--copies", type=int, default=5, help="clips of each color, shape and motion to train on")
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args(arguments)
    torch.manual_seed(args.seed)
    save_clip(args.out / "clip", args.px)
    for number, (split, pictures, copies) in enumerate(
        (("train", args.pictures, args.copies), ("val", args.pictures // 4, 1))
    ):
        rng = np.random.default_rng((args.seed, number))
        draw_shapes(rng, args.out / "shapes" / split, pictures, args.px)
        draw_scenes(rng, args.out, split, pictures, args.px)
        draw_motions(rng, args.out / "motions", split, copies, args.px)


if __name__ == "__main__":
    main()
