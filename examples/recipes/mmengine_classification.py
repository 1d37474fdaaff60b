"""Vim and VideoMamba under MMEngine: registered in MODELS, and trained on images by its Runner.

    python examples/recipes/mmengine_classification.py --data imagenet --out runs/mm --family vim \
        --pretrained hustvl/Vim-tiny-midclstok
    torchrun --nproc-per-node 8 examples/recipes/mmengine_classification.py ... --launcher pytorch

Folders: see image_classification.py. In configs: `model=dict(type="VimClassifier", num_classes=1000)`, or
`backbone=dict(type="VimBackbone", depth=24, embed_dim=192, layers=(5, 11, 17, 23))`. To --resume, also set
TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1: MMEngine 0.10 pickles objects into its checkpoints. Its launcher needs GPUs.
"""

from __future__ import annotations

from typing import Any

import common
from image_classification import pictures
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import METRICS, MODELS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW

from videomamba_depth.video_mamba.backbone import VideoMamba
from videomamba_depth.video_mamba.checkpoints import load_backbone
from videomamba_depth.video_mamba.vim import Vim

KINDS = {"vim": Vim, "videomamba_image": VideoMamba}


@MODELS.register_module()
class VimBackbone(BaseModule):
    """Maps after some layers; family "vim" or "videomamba_image", the other options are the model's."""

    def __init__(self, layers: tuple[int, ...], family: str = "vim", **options: Any) -> None:
        super().__init__()
        self.layers, self.model = tuple(layers), KINDS[family](num_classes=0, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.model.dense_features(x, self.layers)


@MODELS.register_module()
class VimClassifier(BaseModel):
    """A classifier; pretrained is a file or a hub id."""

    def __init__(self, family: str = "vim", pretrained: str | None = None, **options: Any) -> None:
        super().__init__()
        self.model = KINDS[family](**options)
        if pretrained:
            load_backbone(self.model, pretrained, family, keep_head=False)  # type: ignore[arg-type]

    def forward(self, images: Tensor, labels: Tensor | None = None, mode: str = "tensor") -> Any:
        scores = self.model(images)
        if mode == "loss":
            return {"loss": F.cross_entropy(scores, labels)}
        return scores if mode == "tensor" else [scores, labels]


@METRICS.register_module()
class Top1(BaseMetric):
    """Top-1 accuracy in percent."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        scores, labels = data_samples
        self.results.append((int((scores.argmax(1) == labels).sum()), len(labels)))

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {"top1": 100 * sum(right for right, _ in results) / sum(total for _, total in results)}


def main(arguments: list[str] | None = None) -> None:
    """Train and evaluate."""
    parser = common.parser(__doc__, epochs=30, lr=5e-4, families=tuple(KINDS))
    parser.add_argument("--launcher", choices=("none", "pytorch"), default="none")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args(arguments)
    sets = train, _ = pictures(args)
    loader = {"batch_size": args.batch, "num_workers": args.workers, "collate_fn": {"type": "default_collate"}}
    loaders = [{**loader, "dataset": d, "sampler": {"type": "DefaultSampler", "shuffle": d is train}} for d in sets]
    size = dict(zip(("depth", "embed_dim"), common.size_of(args.variant).values(), strict=True))
    size |= {"img_size": args.size, "num_classes": len(train.classes)}
    model = VimClassifier(args.family, args.pretrained, **size)
    wrapped = {"type": "AmpOptimWrapper", "dtype": "bfloat16"} if args.bf16 else {"type": "OptimWrapper"}
    loops = {"train_cfg": {"by_epoch": True, "max_epochs": int(args.epochs), "val_interval": 1}, "val_cfg": {}}
    Runner(
        model,
        str(args.out),
        *loaders,
        optim_wrapper=OPTIM_WRAPPERS.build({**wrapped, "optimizer": AdamW(common.parameter_groups(model, args))}),
        val_evaluator={"type": "Top1"},
        **{**loops, "launcher": args.launcher, "resume": args.resume},
    ).train()


if __name__ == "__main__":
    common.run(main)
