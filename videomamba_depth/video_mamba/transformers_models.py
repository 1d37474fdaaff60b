"""Vim and VideoMamba under the conventions of Hugging Face transformers: configs, models, classifiers and backbones.

Importing this module registers them with transformers' Auto classes, so that its Trainer, pipelines, hub and the heads
that take a `backbone_config` (UperNet, DPT) work with them. The models themselves are `Vim` and `VideoMamba`, held as
`backbone`; nothing is implemented again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    BitImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    VideoMAEImageProcessor,
)
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput

from videomamba_depth.utils.images import IMAGENET_MEAN, IMAGENET_STD
from videomamba_depth.video_mamba.backbone import VideoMamba
from videomamba_depth.video_mamba.checkpoint_files import CheckpointError
from videomamba_depth.video_mamba.checkpoints import load_backbone
from videomamba_depth.video_mamba.positions import join_rows
from videomamba_depth.video_mamba.vim import Vim

try:
    from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
except ImportError:  # before transformers 5.4
    from transformers.utils.backbone_utils import BackboneConfigMixin, BackboneMixin


class _Config(BackboneConfigMixin, PreTrainedConfig):
    """Config of a backbone.

    Args:
        image_size, patch_size: px.
        num_hidden_layers, hidden_size, num_channels: depth, embed_dim and channels of the model.
        model_options: its other keyword arguments, e.g. {"if_rope": True}.
        reshape_hidden_states: as a backbone, return maps `[B, C, h, w]`; False: tokens `[B, 1 + n, C]`, the CLS first,
            as DPT takes them.
        out_features, out_indices: as a backbone, the stages that are returned: "stem", "stage1", ...
        others: see `PreTrainedConfig`.
    """

    def __init__(
        self,
        image_size: int | list[int] = 224,
        patch_size: int = 16,
        num_hidden_layers: int = 24,
        hidden_size: int = 192,
        num_channels: int = 3,
        model_options: dict[str, Any] | None = None,
        reshape_hidden_states: bool = True,
        out_features: list[str] | None = None,
        out_indices: Sequence[int] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.image_size, self.patch_size = image_size, patch_size
        self.num_hidden_layers, self.hidden_size, self.num_channels = num_hidden_layers, hidden_size, num_channels
        self.model_options = model_options or {}
        self.reshape_hidden_states = reshape_hidden_states
        self.stage_names = ["stem", *(f"stage{index}" for index in range(1, num_hidden_layers + 1))]
        if out_features is None:  # setting one sets both, in all releases of transformers
            self.out_indices = out_indices
        else:
            self.out_features = out_features
            if out_indices is not None and [self.stage_names[i] for i in out_indices] != out_features:
                raise ValueError(f"out_indices {list(out_indices)} are not those of out_features {out_features}")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **others: Any) -> Any:
        """Read what `to_dict` returned, see `PreTrainedConfig`.

        Raises:
            CheckpointError: it is of another model: weights of Vim and VideoMamba have the same names and shapes.
        """
        written = config_dict.get("model_type", cls.model_type)
        if written != cls.model_type:
            raise CheckpointError(
                f"the config is of a {written!r} model, not {cls.model_type!r}; load the folder with the classes of its"
                " own model, or with an Auto class"
            )
        return super().from_dict(config_dict, **others)

    def arguments(self, num_classes: int) -> dict[str, Any]:
        """Return the keyword arguments of the model.

        Raises:
            ValueError: `model_options` holds what the config has a name of its own for.
        """
        own = {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "depth": self.num_hidden_layers,
            "embed_dim": self.hidden_size,
            "channels": self.num_channels,
            "num_classes": num_classes,
        }
        twice = sorted({*own, "num_frames"} & set(self.model_options))
        if twice:
            raise ValueError(f"model_options holds {', '.join(twice)}, which the config says by names of its own")
        return {**own, **self.model_options}

    def image_processor(self) -> Any:
        """Return the preprocessing of the published weights: of images the short side is 256/224 of the size, of clips
        the size; then center crop."""
        size = self.image_size if isinstance(self.image_size, int) else min(self.image_size)
        if getattr(self, "num_frames", None):
            return VideoMAEImageProcessor(
                size={"shortest_edge": size},
                crop_size={"height": size, "width": size},
                image_mean=list(IMAGENET_MEAN),
                image_std=list(IMAGENET_STD),
            )
        return BitImageProcessor(
            size={"shortest_edge": round(size * 256 / 224)},
            crop_size={"height": size, "width": size},
            image_mean=list(IMAGENET_MEAN),
            image_std=list(IMAGENET_STD),
        )


class VimConfig(_Config):
    """Config of `Vim`, see `_Config`."""

    model_type = "vim"

    def __init__(self, **options: Any) -> None:  # transformers would generate one that skips that of `_Config`
        super().__init__(**options)

    def build(self, num_classes: int) -> Vim:
        """Return the model, random."""
        return Vim(**self.arguments(num_classes))


class VideoMambaConfig(_Config):
    """Config of `VideoMamba`, see `_Config`.

    Args:
        num_frames: frames of a clip, e.g. 8; None: images.
    """

    model_type = "videomamba"

    def __init__(self, num_frames: int | None = None, **others: Any) -> None:
        self.num_frames = num_frames
        super().__init__(**others)

    def build(self, num_classes: int) -> VideoMamba:
        """Return the model, random."""
        return VideoMamba(**self.arguments(num_classes), num_frames=self.num_frames)


class _Face(PreTrainedModel):
    """A `Vim` or `VideoMamba` under transformers' conventions; its weights are those of `backbone`."""

    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    classifies = False
    accepts_loss_kwargs = False  # the loss is a mean over the batch: Trainer must not scale it for others

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.backbone = config.build(config.num_labels if self.classifies else 0)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize a classifier that a checkpoint lacks; the models initialize themselves when they are built."""
        if module is getattr(self.backbone, "head", None):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def load_published(self, path: str | Path, family: str, keep_head: bool = True) -> None:
        """Load a file of the authors, or ours, see `load_backbone`."""
        load_backbone(self.backbone, path, family, keep_head=keep_head)  # type: ignore[arg-type]

    def _pixels(self, pixel_values: Tensor) -> Tensor:
        """Return what the model takes: clips come as `[B, T, 3, H, W]`."""
        if not self.backbone.patch_embed.is_video:
            return pixel_values
        channels, shape = self.config.num_channels, tuple(pixel_values.shape)
        if len(shape) != 5 or shape[2] != channels:
            raise ValueError(f"pixel_values of clips must have shape [B, T, {channels}, H, W]; got {shape}")
        return pixel_values.transpose(1, 2)

    def _streams(self, pixel_values: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the token streams `[B, L, C]` after so many layers, in rising order, as the model runs them."""
        x, model = self._pixels(pixel_values), self.backbone
        return model._streams(x, None, None, layers) if isinstance(model, VideoMamba) else model._streams(x, layers)

    def _streams_and_hidden(
        self, pixel_values: Tensor, layers: Sequence[int], output_hidden_states: bool | None
    ) -> tuple[list[Tensor], tuple[Tensor, ...] | None]:
        """Return the streams after `layers`, and on demand (else None) those after every layer, the CLS first.

        Args:
            output_hidden_states: None: what the config says.
        """
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if not wanted:
            return self._streams(pixel_values, layers), None
        every = self._streams(pixel_values, range(self.config.num_hidden_layers + 1))
        step = _layers_per_stream(self.backbone)
        return [every[passed // step] for passed in layers], tuple(map(self._cls_first, every))

    def _cls_first(self, stream: Tensor) -> Tensor:
        """Return a stream as `[B, 1 + n, C]`, the CLS first: of several the mean, of none the mean of the patches."""
        model = self.backbone
        if isinstance(model, VideoMamba):
            return stream
        patches, cls = model._split(stream)
        return join_rows(patches, (cls if model.cls_names else patches).mean(1, keepdim=True), (0,))

    def _returned(self, output: Any, return_dict: bool | None) -> Any:
        """Return an output as it is asked for: as an object, or as a tuple; None: what the config says."""
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class _Model(_Face):
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, return_dict: bool | None = None, **_: Any
    ) -> Any:
        """Return the tokens after the final norm, the CLS first, that CLS, and on demand the stream after every layer.

        Args:
            pixel_values: normalized pixels, images `[B, 3, H, W]`, clips `[B, T, 3, H, W]`.
            output_hidden_states, return_dict: as in transformers; None: what the config says.
        """
        last = [self.config.num_hidden_layers]
        (stream,), hidden = self._streams_and_hidden(pixel_values, last, output_hidden_states)
        tokens = self.backbone.norm_f(self._cls_first(stream))
        return self._returned(BaseModelOutputWithPooling(tokens, tokens[:, 0], hidden), return_dict)


class _Classifier(_Face):
    classifies = True

    def __init__(self, config: Any) -> None:
        if config.num_labels < 1:
            raise ValueError(f"a classifier needs num_labels of at least 1; got {config.num_labels}")
        super().__init__(config)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """Return class scores `[B, num_labels]`, the loss where labels are given, and on demand the hidden states.

        Args:
            pixel_values: normalized pixels, images `[B, 3, H, W]`, clips `[B, T, 3, H, W]`.
            labels: `[B]` int64 (`[B, num_labels]` floats for several labels).
            output_hidden_states, return_dict: see `_Model`.
        """
        last = [self.config.num_hidden_layers]
        (stream,), hidden = self._streams_and_hidden(pixel_values, last, output_hidden_states)
        logits = self.backbone._scores(self.backbone.norm_f(stream))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return self._returned(ImageClassifierOutput(loss, logits, hidden), return_dict)


class _Backbone(BackboneMixin, _Face):
    has_attentions = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if hasattr(self, "_init_backbone"):  # before transformers 5.4 that was up to the model
            self._init_backbone(config)
        step = _layers_per_stream(self.backbone)
        if any(config.stage_names.index(name) % step for name in self.out_features):
            raise ValueError(f"if_bidirectional runs layers in pairs: take even stages; got {self.out_features}")
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, return_dict: bool | None = None, **_: Any
    ) -> Any:
        """Return the streams after the stages in `out_features`, `[B, C, h, w]` or tokens, see `VimConfig`.

        The other arguments are those of `_Model`.
        """
        stages = [self.config.stage_names.index(name) for name in self.out_features]
        streams, hidden = self._streams_and_hidden(pixel_values, stages, output_hidden_states)
        maps = list(map(self._cls_first, streams))
        if self.config.reshape_hidden_states:
            shape = self.backbone.patch_embed.token_shape(self._pixels(pixel_values))
            maps = list(self.backbone._as_maps([tokens[:, 1:] for tokens in maps], shape))
        return self._returned(BackboneOutput(tuple(maps), hidden), return_dict)


def _layers_per_stream(model: Vim | VideoMamba) -> int:
    """Return after how many layers there is one token stream: 2 where layers run in pairs."""
    return 2 if isinstance(model, Vim) and model.if_bidirectional else 1


class VimModel(_Model):
    """`Vim` without its classifier."""

    config_class = VimConfig


class VimForImageClassification(_Classifier):
    """`Vim` with its classifier."""

    config_class = VimConfig


class VimBackbone(_Backbone):
    """`Vim` as a backbone of maps."""

    config_class = VimConfig


class VideoMambaModel(_Model):
    """`VideoMamba` without its classifier."""

    config_class = VideoMambaConfig


class VideoMambaForImageClassification(_Classifier):
    """`VideoMamba` for images with its classifier."""

    config_class = VideoMambaConfig

    def __init__(self, config: VideoMambaConfig) -> None:
        if config.num_frames is not None:
            raise ValueError(
                f"images need num_frames=None; got {config.num_frames}: take VideoMambaForVideoClassification for clips"
            )
        super().__init__(config)


class VideoMambaForVideoClassification(_Classifier):
    """`VideoMamba` for clips with its classifier."""

    config_class = VideoMambaConfig

    def __init__(self, config: VideoMambaConfig) -> None:
        if config.num_frames is None:
            raise ValueError("clips need their number of frames, e.g. VideoMambaConfig(num_frames=8)")
        super().__init__(config)


class VideoMambaBackbone(_Backbone):
    """`VideoMamba` for images as a backbone of maps."""

    config_class = VideoMambaConfig


def _register() -> None:
    for config in (VimConfig, VideoMambaConfig):
        AutoConfig.register(config.model_type, config)
    for auto, models in (
        (AutoModel, (VimModel, VideoMambaModel)),
        (AutoBackbone, (VimBackbone, VideoMambaBackbone)),
        (AutoModelForImageClassification, (VimForImageClassification, VideoMambaForImageClassification)),
        (AutoModelForVideoClassification, (VideoMambaForVideoClassification,)),
    ):
        for model in models:
            auto.register(model.config_class, model)


_register()
