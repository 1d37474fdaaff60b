"""Learn to find videos by their descriptions: VideoMamba beside a text encoder, with a contrastive loss.

    python examples/recipes/video_text_retrieval.py --data msrvtt --out runs/retrieval --variant m \
        --text openai/clip-vit-base-patch16 --pretrained videomamba_m16_25M_f8_res224.pth --family videomamba_retrieval
    torchrun --nproc-per-node 8 examples/recipes/video_text_retrieval.py ...     # or: accelerate launch

--data holds train.tsv and val.tsv: one video per line, its path relative to --data, a tab, its description. The metrics
are the shares of descriptions whose video is among the best 1, 5 and 10.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import torch
from folders import read_pairs
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPTextModel
from video_classification import Clips, transforms

from videomamba_depth.utils.errors import building
from videomamba_depth.video_mamba.backbone import VideoMamba
from videomamba_depth.video_mamba.checkpoints import load_backbone


class Described(Clips):
    """Clips with the numbers of their descriptions' words."""

    def __init__(self, data: Path, split: str, num_frames: int, size: int, tokenizer: Any) -> None:
        pairs = read_pairs(data / f"{split}.tsv")
        self.items = [(data / path, 0) for path, _ in pairs]
        self.words = tokenizer([text for _, text in pairs], padding=True, truncation=True, return_tensors="pt")
        self.num_frames, self.is_train = num_frames, split == "train"
        self.transform = transforms(size, self.is_train)

    def __getitem__(self, index: int) -> dict[str, Any]:
        words = {name: self.words[name][index] for name in ("input_ids", "attention_mask")}
        return {**super().__getitem__(index), **words}


class TwoTowers(nn.Module):
    """Unit vectors of clips and of texts, and how alike they are."""

    def __init__(self, video: VideoMamba, text: CLIPTextModel, width: int = 512) -> None:
        super().__init__()
        self.video, self.text = video, text
        self.video_proj = nn.Linear(video.embed_dim, width)
        self.text_proj = nn.Linear(text.config.hidden_size, width)
        self.temperature = nn.Parameter(torch.tensor(0.07))

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Any]:
        """Return the symmetric contrastive loss over the batch of all processes, and this one's vectors `[B, width]`.

        labels: not used; the Trainer measures nothing without.
        """
        clips = F.normalize(self.video_proj(self.video.pooled_features(pixel_values.transpose(1, 2))), dim=1)
        pooled = self.text(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        texts = F.normalize(self.text_proj(pooled), dim=1)
        scores = common.gathered(clips) @ common.gathered(texts).T / self.temperature.clamp(min=0.01)
        truth = torch.arange(len(scores), device=scores.device)
        loss = (F.cross_entropy(scores, truth) + F.cross_entropy(scores.T, truth)) / 2
        return {"loss": loss, "clips": clips, "texts": texts}


def recall(prediction: Any) -> dict[str, float]:
    """Return recall at 1, 5 and 10 from text to video, in percent."""
    clips, texts = (torch.as_tensor(x) for x in prediction.predictions)
    scores = texts @ clips.T
    rank = (scores >= scores.diag()[:, None]).sum(1) - 1  # of equals its own comes last
    return {f"recall_at_{k}": 100 * (rank < k).float().mean().item() for k in (1, 5, 10)}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate after every epoch, and return the last metrics."""
    families = ["videomamba_retrieval", "videomamba_video", "videomamba_masked"]
    parser = common.parser(__doc__, epochs=10, lr=2e-5, families=families)
    parser.add_argument("--frames", type=common.number(1, kind=int), default=8)
    parser.add_argument("--text", required=True, help="CLIP's text encoder, a hub id or a folder")
    args = parser.parse_args(arguments)
    text = common.published("--text", args.text, clip=CLIPTextModel, clip_text_model=CLIPTextModel)
    with building(f"--text {args.text}"):
        tokenizer = AutoTokenizer.from_pretrained(args.text)
    train, val = (Described(args.data, s, args.frames, args.size, tokenizer) for s in ("train", "val"))
    depth, width = common.size_of(args.variant).values()
    options = {"num_classes": 0, "num_frames": args.frames, "pool_norm": True}
    video = VideoMamba(args.size, depth=depth, embed_dim=width, **options)
    if args.pretrained:
        load_backbone(video, args.pretrained, args.family)
    return common.train(TwoTowers(video, text), args, train_dataset=train, eval_dataset=val, compute_metrics=recall)


if __name__ == "__main__":
    common.run(main)
