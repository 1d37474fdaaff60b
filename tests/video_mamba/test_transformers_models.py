"""The faces for transformers: saved and loaded, in heads and pipelines, equal to the models that they hold."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from small_backbones import randomize_
from torch import Tensor

from videomamba_depth.video_mamba.checkpoint_files import CheckpointError
from videomamba_depth.video_mamba.checkpoints import load_backbone

transformers_models = pytest.importorskip("videomamba_depth.video_mamba.transformers_models")
transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "num_hidden_layers": 4, "hidden_size": 16, "num_labels": 3,
    "model_options": {"ssm_cfg": {"d_state": 4, "backend": "reference"}},
}  # fmt: skip
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CLIPS = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vim(**options: Any) -> Any:
    return transformers_models.VimConfig(**{**SMALL, **options})


def video(**options: Any) -> Any:
    return transformers_models.VideoMambaConfig(**{**SMALL, "num_frames": 4, **options})


@pytest.mark.parametrize(
    ("name", "config", "pixels", "auto"),
    [
        ("VimModel", vim, IMAGES, "AutoModel"),
        ("VimForImageClassification", vim, IMAGES, "AutoModelForImageClassification"),
        ("VideoMambaModel", video, CLIPS, "AutoModel"),
        ("VideoMambaForVideoClassification", video, CLIPS, "AutoModelForVideoClassification"),
    ],
)
def test_saved_and_loaded_models_give_the_same(
    name: str, config: Any, pixels: Tensor, auto: str, tmp_path: Path
) -> None:
    model = randomize_(getattr(transformers_models, name)(config())).eval()
    model.save_pretrained(tmp_path)
    loaded = getattr(transformers, auto).from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    torch.testing.assert_close(loaded(pixels)[0], model(pixels)[0])
    direct = pixels.transpose(1, 2) if pixels.ndim == 5 else pixels
    if "For" in name:
        torch.testing.assert_close(model(pixels).logits, model.backbone(direct))
        loss = model(pixels, labels=torch.tensor([0, 2])).loss
        torch.testing.assert_close(
            loss, torch.nn.functional.cross_entropy(model.backbone(direct), torch.tensor([0, 2]))
        )
    else:
        output = model(pixels, output_hidden_states=True)
        assert len(output.hidden_states) == 5
        torch.testing.assert_close(output.pooler_output, model.backbone.cls_features(direct))
        torch.testing.assert_close(output.last_hidden_state[:, 1:], model.backbone.patch_features(direct))
        assert torch.equal(model(pixels, return_dict=False)[0], output.last_hidden_state)


def test_a_classifier_starts_from_a_model_with_a_new_head(tmp_path: Path) -> None:
    model = randomize_(transformers_models.VimModel(vim()))
    model.save_pretrained(tmp_path)
    classifier = transformers_models.VimForImageClassification.from_pretrained(tmp_path, num_labels=7)
    assert torch.equal(classifier.backbone.layers[0].mixer.A_log, model.backbone.layers[0].mixer.A_log)
    assert classifier.backbone.head.weight.shape == (7, 16)
    assert 0.005 < classifier.backbone.head.weight.std() < 0.05
    assert not classifier.backbone.head.bias.any()


def test_published_files_load_into_the_faces(tmp_path: Path) -> None:
    source = randomize_(vim().build(3), seed=5)
    torch.save({"model": source.state_dict()}, tmp_path / "vim.pth")
    model = transformers_models.VimForImageClassification(vim()).eval()
    model.load_published(tmp_path / "vim.pth", "vim")
    torch.testing.assert_close(model(IMAGES).logits, source.eval()(IMAGES))


def test_backbones_give_maps_and_tokens() -> None:
    for config, name in ((vim, "VimBackbone"), (lambda **o: video(num_frames=None, **o), "VideoMambaBackbone")):
        model = transformers.AutoBackbone.from_config(config(out_indices=[0, 2, 4])).eval()
        assert type(model).__name__ == name
        assert model.channels == [16, 16, 16]
        maps = model(IMAGES).feature_maps
        assert [tuple(m.shape) for m in maps] == [(2, 16, 4, 4)] * 3
        direct = model.backbone.dense_features(IMAGES, [1, 3])
        for got, expected in zip(maps[1:], direct, strict=True):
            torch.testing.assert_close(got, expected)
        model.config.reshape_hidden_states = False
        assert model(IMAGES).feature_maps[1].shape == (2, 17, 16)


def test_saved_faces_load_into_the_models(tmp_path: Path) -> None:
    model = randomize_(transformers_models.VimForImageClassification(vim()))
    model.save_pretrained(tmp_path)
    plain = vim().build(3)
    load_backbone(plain, tmp_path / "model.safetensors", "vim")
    torch.testing.assert_close(plain.eval()(IMAGES), model.eval()(IMAGES).logits)


@pytest.mark.parametrize("by", ["save_pretrained", "Trainer"])
@pytest.mark.parametrize("size", [32, [16, 64]])
def test_a_saved_face_says_by_its_config_what_it_is(by: str, size: Any, tmp_path: Path) -> None:
    kinds = {
        "vim": transformers_models.VimForImageClassification(vim(image_size=size)),
        "videomamba_image": transformers_models.VideoMambaForImageClassification(
            video(image_size=size, num_frames=None)
        ),
        "videomamba_video": transformers_models.VideoMambaForVideoClassification(video(image_size=size)),
    }
    for family, model in kinds.items():
        randomize_(model)
        if by == "Trainer":
            pytest.importorskip("accelerate", reason="the Trainer needs accelerate")
            transformers.Trainer(
                model, transformers.TrainingArguments(str(tmp_path / family), report_to=[])
            ).save_model()
        else:
            model.save_pretrained(tmp_path / family)
        file = tmp_path / family / "model.safetensors"
        square = type(model.config)(**{**SMALL, "num_frames": getattr(model.config, "num_frames", None)}).build(3)
        load_backbone(square, file, family)  # from the grid that it was built with: 2x8 has as many patches as 4x4
        assert torch.equal(square.pos_embed, model.backbone.pos_embed) is (size == 32)
        for other in kinds:
            if other != family:
                with pytest.raises(CheckpointError, match=f"says that it is of family '{family}', not '{other}'"):
                    load_backbone(kinds[other].backbone, file, other)
    with pytest.raises(CheckpointError, match="config is of a 'videomamba' model, not 'vim'"):
        transformers_models.VimForImageClassification.from_pretrained(tmp_path / "videomamba_image")
    (tmp_path / "vim" / "config.json").write_text('{"model_type": "vim"}')
    with pytest.raises(CheckpointError, match=r"config.json' is damaged .*patch_size.*save both again"):
        load_backbone(kinds["vim"].backbone, tmp_path / "vim" / "model.safetensors", "vim")
    (tmp_path / "vim" / "config.json").write_text('{"model_type": "dpt"}')  # of another file
    load_backbone(kinds["vim"].backbone, tmp_path / "vim" / "model.safetensors", "vim")


@pytest.mark.parametrize("options", [{}, {"if_bidirectional": True}])
@pytest.mark.parametrize("name", ["VimModel", "VimForImageClassification", "VimBackbone"])
def test_hidden_states_and_tuples_as_the_call_or_the_config_asks(name: str, options: dict[str, Any]) -> None:
    config = vim(model_options={**SMALL["model_options"], **options})
    model = randomize_(getattr(transformers_models, name)(config)).eval()
    plain = model(IMAGES)
    assert plain.hidden_states is None
    asked = model(IMAGES, output_hidden_states=True)
    assert len(asked.hidden_states) == (3 if options else 5)
    torch.testing.assert_close(asked[0], plain[0])
    assert all(state.shape == (2, 17, 16) for state in asked.hidden_states)
    torch.testing.assert_close(
        asked.hidden_states[-1][:, 1:], model.backbone.dense_features(IMAGES, [3])[0].flatten(2).transpose(1, 2)
    )
    model.config.output_hidden_states, model.config.return_dict = True, False
    configured = model(IMAGES)
    assert isinstance(configured, tuple)
    assert torch.equal(configured[-1][-1], asked.hidden_states[-1])
    assert model(IMAGES, output_hidden_states=False, return_dict=True).hidden_states is None


def test_images_are_the_default_and_clips_say_their_frames() -> None:
    config = transformers_models.VideoMambaConfig(**SMALL)
    for auto in (transformers.AutoModelForImageClassification, transformers.AutoBackbone, transformers.AutoModel):
        auto.from_config(config)(IMAGES)
    with pytest.raises(ValueError, match=r"clips need their number of frames, e.g. VideoMambaConfig\(num_frames=8\)"):
        transformers.AutoModelForVideoClassification.from_config(config)
    clips = transformers_models.VideoMambaForVideoClassification(video())
    for wrong in (torch.zeros(1, 3, 4, 32, 32), torch.zeros(1, 3, 32, 32)):
        message = rf"of clips must have shape \[B, T, 3, H, W\]; got \({', '.join(map(str, wrong.shape))}\)"
        with pytest.raises(ValueError, match=message):
            clips(wrong)
    with pytest.raises(ValueError, match="images need num_frames=None; got 4"):
        transformers.AutoModelForImageClassification.from_config(video())
    with pytest.raises(ValueError, match="model_options holds depth, num_classes, which the config says"):
        transformers_models.VimForImageClassification(vim(model_options={"depth": 2, "num_classes": 7}))
    with pytest.raises(ValueError, match="a classifier needs num_labels of at least 1"):
        transformers_models.VimForImageClassification(vim(num_labels=0))


def test_the_stages_that_a_backbone_returns() -> None:
    config = vim(out_features=["stem", "stage2"], out_indices=[0, 2])
    assert (config.out_features, config.out_indices) == (["stem", "stage2"], [0, 2])
    again = transformers_models.VimConfig.from_dict(config.to_dict())
    assert (again.out_features, again.out_indices) == (["stem", "stage2"], [0, 2])
    assert vim().out_features == ["stage4"]
    with pytest.raises(ValueError, match="are not those of out_features"):
        vim(out_features=["stage1"], out_indices=[2])
    pairs = {**SMALL["model_options"], "if_bidirectional": True}
    maps = transformers_models.VimBackbone(vim(model_options=pairs, out_indices=[0, 2, 4]))(IMAGES).feature_maps
    assert [tuple(m.shape) for m in maps] == [(2, 16, 4, 4)] * 3
    with pytest.raises(ValueError, match=r"take even stages; got \['stage1', 'stage4'\]"):
        transformers_models.VimBackbone(vim(model_options=pairs, out_indices=[1, 4]))


def test_upernet_and_dpt_heads_take_them() -> None:
    backbone = vim(out_indices=[1, 2, 3, 4])
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, num_labels=5, auxiliary_in_channels=16, auxiliary_channels=8
    )
    assert transformers.UperNetForSemanticSegmentation(config).eval()(IMAGES).logits.shape == (2, 5, 32, 32)
    config = transformers.DPTConfig(
        backbone_config=vim(out_indices=[1, 2, 3, 4], reshape_hidden_states=False), is_hybrid=False, hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, reassemble_factors=[4, 2, 1, 0.5], patch_size=8,
    )  # fmt: skip
    depth = transformers.DPTForDepthEstimation(config).eval()(IMAGES).predicted_depth
    assert depth.ndim == 3
    assert depth.isfinite().all()


def test_a_pipeline_classifies_a_picture() -> None:
    from PIL import Image

    model = transformers_models.VimForImageClassification(vim(id2label={0: "a", 1: "b", 2: "c"})).eval()
    classify = transformers.pipeline(
        "image-classification", model=model, image_processor=vim().image_processor(), device="cpu"
    )
    found = classify(Image.fromarray(np.zeros((40, 50, 3), np.uint8)))
    assert {answer["label"] for answer in found} == {"a", "b", "c"}


def test_a_pipeline_classifies_a_video(tmp_path: Path) -> None:
    with av.open(tmp_path / "clip.mp4", "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for value in range(0, 200, 20):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), value, np.uint8), "rgb24")))
        file.mux(stream.encode())
    config = video(id2label={0: "a", 1: "b", 2: "c"})
    model = transformers_models.VideoMambaForVideoClassification(config).eval()
    classify = transformers.pipeline(
        "video-classification", model=model, image_processor=config.image_processor(), device="cpu"
    )
    found = classify(str(tmp_path / "clip.mp4"), num_frames=config.num_frames)
    assert {answer["label"] for answer in found} == {"a", "b", "c"}


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="the Trainer needs accelerate")
def test_the_trainer_lowers_the_loss(tmp_path: Path) -> None:
    data = [{"pixel_values": IMAGES[i % 2], "labels": i % 2} for i in range(8)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=5, per_device_train_batch_size=4, learning_rate=5e-3, report_to=[], use_cpu=True
    )
    model = transformers_models.VimForImageClassification(vim(num_labels=2))
    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    assert not trainer.model_accepts_loss_kwargs, "with several processes the mean loss would be scaled by their number"
    before = trainer.evaluate(data)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(data)["eval_loss"] < before


def test_the_student_imports_none_of_this() -> None:
    code = (
        "import sys, json, videomamba_depth.streaming.stream, videomamba_depth.training.trainer\n"
        "print(json.dumps([m for m in sys.modules if m.startswith('videomamba_depth.video_mamba.')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[2] for name in json.loads(done.stdout)}
    assert not loaded & {"transformers_models", "vim", "vim_mixer", "pretrain", "blocks", "refiner"}, loaded
