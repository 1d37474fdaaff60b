"""Fine-tune VideoMamba on clips: folders train/CLASS/*.mp4 and val/..., or lists train.csv and val.csv of "path label".

    python examples/recipes/video_classification.py --data kinetics --out runs/k400 --pretrained k400_mask_pt.pth \
        --family videomamba_masked
    torchrun --nproc-per-node 8 examples/recipes/video_classification.py ...     # or: accelerate launch

Lists are those of Kinetics, Something-Something V2 and Breakfast: one video per line, the path (relative to --data) and
the number of its class, with a space or a comma between. Of each of --frames segments one frame is taken. A file for
images (--family videomamba_image) is inflated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import torch
from folders import Classes, class_names, read_labels
from torch.utils.data import Dataset
from torchvision.transforms import v2

from videomamba_depth.data.video.find import find_sources
from videomamba_depth.data.video.reader import probe_video, read_frames
from videomamba_depth.utils.images import IMAGENET_MEAN, IMAGENET_STD
from videomamba_depth.video_mamba.checkpoints import inflate_image_weights
from videomamba_depth.video_mamba.transformers_models import VideoMambaConfig, VideoMambaForVideoClassification


def transforms(size: int, is_train: bool, flip: bool = True) -> v2.Compose:
    """Return the augmentations, or the preparation, of clips [T, 3, H, W]: one for all frames of a clip."""
    start = [v2.RandomResizedCrop(size, scale=(0.5, 1.0)), v2.RandomHorizontalFlip(0.5 * flip), v2.RandAugment()]
    end = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD))]
    return v2.Compose([*(start if is_train else [v2.Resize(size), v2.CenterCrop(size)]), *end])


class Clips(Dataset):
    """Clips of `num_frames` frames with the number of their class; split None: all videos of a folder, to train on.

    `known`: the classes of the training data, by which all others are numbered.
    """

    def __init__(
        self, data: Path, split: str | None, num_frames: int, size: int, flip: bool = True, known: Classes = None
    ) -> None:
        listed = data / f"{split}.csv"
        if split is None:
            self.items, self.classes = [(Path(source.path), 0) for source in find_sources(data)], ["video"]
        elif listed.is_file():
            self.items = [(data / path, label) for path, label in read_labels(listed, known)]
            self.classes = list(known or map(str, range(1 + max(label for _, label in self.items))))
        else:
            self.classes = class_names(data / split, known)
            folders = [(label, data / split / name) for label, name in enumerate(self.classes)]
            found = [(label, source) for label, folder in folders if folder.is_dir() for source in find_sources(folder)]
            self.items = [(Path(source.path), label) for label, source in found]
        self.num_frames, self.is_train = num_frames, split in (None, "train")
        self.transform = transforms(size, self.is_train, flip)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.items[index]
        info = probe_video(path)
        edges = torch.linspace(0, info.num_frames, self.num_frames + 1)
        place = torch.rand(self.num_frames) if self.is_train else torch.full((self.num_frames,), 0.5)
        frames = (edges[:-1] + place * (edges[1:] - edges[:-1])).long().clamp(max=info.num_frames - 1)
        pixels = torch.from_numpy(read_frames(path, frames.tolist(), info=info)).permute(0, 3, 1, 2)  # [T, 3, H, W]
        return {"pixel_values": self.transform(pixels), "labels": label}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate after every epoch, and return the last metrics."""
    families = ["videomamba_video", "videomamba_masked", "videomamba_retrieval", "videomamba_image"]
    parser = common.parser(__doc__, epochs=45, lr=4e-4, families=families)
    parser.add_argument("--frames", type=common.number(1, kind=int), default=8)
    about = "where left and right make classes (Something-Something)"
    parser.add_argument("--no-flip", action="store_true", help=about)
    args = parser.parse_args(arguments)
    options = (args.frames, args.size, not args.no_flip)
    train = Clips(args.data, "train", *options)
    val = Clips(args.data, "val", *options, train.classes)
    config = VideoMambaConfig(
        num_frames=args.frames,
        image_size=args.size,
        **common.size_of(args.variant),
        **common.labels(train.classes),
    )
    model = VideoMambaForVideoClassification(config)
    if args.pretrained and args.family == "videomamba_image":
        inflate_image_weights(model.backbone, args.pretrained)
    elif args.pretrained:
        model.load_published(args.pretrained, args.family, keep_head=False)
    return common.train(model, args, train_dataset=train, eval_dataset=val, compute_metrics=common.accuracy)


if __name__ == "__main__":
    common.run(main)
