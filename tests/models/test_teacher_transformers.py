"""Depth models of transformers as teachers: the depth of their own pipeline, and the kind that it has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from depth_models import BUILDERS, save_depth_model
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, pipeline

from videomamba_depth import DepthStream
from videomamba_depth.models.teacher_transformers import TransformersTeacher
from videomamba_depth.models.teachers import open_encoder, open_teacher
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError

METRIC = {"depth_pro", "zoedepth", "glpn", "tipsv2_dpt", "dpt_dinov2", "prompt_depth_anything"}
NAMED = {"dpt_dinov2", "prompt_depth_anything"}  # their own kind is not known, or of no use


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {family: save_depth_model(family, tmp_path_factory.mktemp(family)) for family in BUILDERS}


def pictures(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


def as_rgb(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("family", BUILDERS)
def test_the_depth_is_that_of_the_pipeline(folders: dict[str, str], family: str) -> None:
    named = DepthKind.METRIC if family in NAMED else None
    teacher, frames = open_teacher(folders[family], depth_kind=named), pictures(61, 87)
    assert teacher.depth_kind is (DepthKind.METRIC if family in METRIC else DepthKind.RELATIVE)
    depth = teacher.predict_depth(as_rgb(frames))
    assert depth.shape == (2, 1, 61, 87)
    assert depth.std() > 1e-3 * depth.mean() > 0
    images = [Image.fromarray(frame) for frame in frames]
    if family == "depth_pro_without_fov":  # the pipeline fails without
        processor = AutoImageProcessor.from_pretrained(folders[family])
        with torch.no_grad():
            outputs = AutoModelForDepthEstimation.from_pretrained(folders[family])(
                **processor(images, return_tensors="pt")
            )
        processed = processor.post_process_depth_estimation(outputs, [(61, 87)] * 2)
        theirs = torch.stack([1 / one["predicted_depth"] for one in processed])  # up to a scale: learned as 1/z
    else:
        estimate = pipeline("depth-estimation", model=folders[family], device="cpu")
        theirs = torch.stack([estimate(image)["predicted_depth"] for image in images])
    torch.testing.assert_close(depth[:, 0], theirs, rtol=1e-5, atol=0)  # measured up to 4e-7: batches of 2 and of 1


def test_a_kind_that_nothing_says_has_to_be_named(folders: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"teacher\.depth_kind=KIND, one of affine_invariant_inverse_depth") as caught:
        open_teacher(folders["dpt_dinov2"])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="its shift is unknown"):
        open_teacher(folders["prompt_depth_anything"])


def test_depth_up_to_a_scale_becomes_inverse_depth(folders: dict[str, str]) -> None:
    kinds = (DepthKind.SCALED_DEPTH, DepthKind.METRIC, DepthKind.SCALED_INVERSE)
    scaled, meters, inverse = (open_teacher(folders["glpn"], depth_kind=kind) for kind in kinds)
    rgb = as_rgb(pictures(40, 60))
    assert scaled.depth_kind is inverse.depth_kind is DepthKind.RELATIVE
    assert torch.equal(scaled.predict_depth(rgb), 1 / meters.predict_depth(rgb))
    assert torch.equal(inverse.predict_depth(rgb), meters.predict_depth(rgb))
    assert len({json.dumps(teacher.cache_key()) for teacher in (scaled, meters, inverse)}) == 3


def test_depth_near_0_has_no_label_but_a_stream_has_it(folders: dict[str, str]) -> None:
    teacher = open_teacher(folders["prompt_depth_anything"], depth_kind=DepthKind.SCALED_DEPTH)
    features, size = teacher.encode_frame(as_rgb(pictures(61, 87))), (61, 87)
    assert torch.isfinite(teacher.decode(features, size)).all()
    depth = torch.linspace(0, 1, 61 * 87).view(1, 1, *size)
    depth.view(-1)[1] = 1e-17
    teacher._depth = lambda pixels: depth  # type: ignore[attr-defined, method-assign]
    features = teacher.encode_frame(as_rgb(pictures(61, 87))[:1])
    stream, labels = teacher.decode(features, size), teacher.decode_labels(features, size)
    known = depth >= 0.1 * 0.05
    assert torch.equal(torch.isfinite(labels), known)
    assert torch.equal(labels[known], 1 / depth[known])
    assert torch.equal(stream[known], labels[known])
    assert stream.max() <= 1 / 0.005 + 1


@pytest.mark.parametrize(
    ("family", "changed"),
    [
        ("dpt", {"image_processor_type": "ViTImageProcessor"}), ("dpt", {"do_resize": False}),
        ("dpt", {"size": {"height": 50, "width": 64}}), ("dpt", {"size": {"shortest_edge": 64}}),
        ("dpt", {"image_mean": [0.5, 0.5]}), ("glpn", {"size_divisor": 16}),
        ("zoedepth", {"image_processor_type": "DPTImageProcessor"}),
    ],
)  # fmt: skip
def test_a_processor_that_does_not_fit(folders: dict[str, str], tmp_path: Path, family: str, changed: Any) -> None:
    copy = shutil.copytree(folders[family], tmp_path / "copy")
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(UserError, match=r"preprocessor_config\.json") as caught:
        open_teacher(str(copy))
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


def test_code_of_a_checkpoint_is_not_run(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(folders["glpn"], tmp_path / "copy")
    for name, key in (
        ("config.json", "AutoModelForDepthEstimation"),
        ("preprocessor_config.json", "AutoImageProcessor"),
    ):
        about = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(about | {"auto_map": {key: "own.Own", "AutoConfig": "own.Own"}}))
    (copy / "own.py").write_text("raise SystemExit('run')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    assert isinstance(open_teacher(str(copy)), TransformersTeacher)


@pytest.mark.parametrize("text", ["[1]", '{"model_type": []}', '{"model_type": "dpt", "backbone_config": "x"}'])
def test_a_config_of_another_form(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    for load in (open_teacher, open_encoder):
        with pytest.raises(UserError, match="cannot load a depth model from folder") as caught:
            load(str(tmp_path))
        assert "\n" not in str(caught.value)


def test_what_is_no_depth_is_refused(tmp_path: Path, tiny_teacher_folder: str) -> None:
    for family, message in (("chmv2", "the height of a canopy"), ("bert", "a 'bert' model, not one of depth")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
        with pytest.raises(UserError, match=message):
            open_teacher(str(tmp_path), depth_kind=DepthKind.METRIC)
    with pytest.raises(UserError, match="is affine_invariant_inverse_depth; leave the key out"):
        open_teacher(tiny_teacher_folder, depth_kind=DepthKind.METRIC)


def test_a_folder_without_an_image_processor(folders: dict[str, str], tmp_path: Path) -> None:
    for file in Path(folders["glpn"]).iterdir():
        if file.name != "preprocessor_config.json":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(UserError, match=r"must hold config\.json, preprocessor_config\.json and model\.safetensors"):
        open_teacher(str(tmp_path))


def test_it_labels_but_does_not_encode(folders: dict[str, str]) -> None:
    with pytest.raises(UserError, match="it labels, but cannot be a student's encoder"):
        open_encoder(folders["dpt"])


def test_weights_and_processor_decide_the_labels(folders: dict[str, str], tmp_path: Path) -> None:
    key = open_teacher(folders["dpt"]).cache_key()
    open_teacher(folders["dpt"]).save_pretrained(tmp_path)
    again = open_teacher(str(tmp_path)).cache_key()
    assert {**again, "model_id": key["model_id"]} == key
    about = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about | {"size": {"height": 96, "width": 96}}))
    assert open_teacher(str(tmp_path)).cache_key()["resize"] != key["resize"]


def test_tensors_that_are_never_used_may_be_missing(folders: dict[str, str], tmp_path: Path) -> None:
    """Published DPT checkpoints lack them, and the digest must not depend on what they are drawn as."""
    from safetensors.torch import load_file, save_file

    for file in Path(folders["dpt"]).glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    weights = load_file(Path(folders["dpt"]) / "model.safetensors")
    used = {name: t for name, t in weights.items() if "layers.0.residual_layer1" not in name}
    assert len(used) < len(weights)
    save_file(used, tmp_path / "model.safetensors", metadata={"format": "pt"})
    one, two = (open_teacher(str(tmp_path)) for _ in range(2))
    assert one.weights_sha256() == two.weights_sha256()
    rgb = as_rgb(pictures(40, 60))
    assert torch.equal(one.predict_depth(rgb), open_teacher(folders["dpt"]).predict_depth(rgb))


def test_weights_that_a_config_leaves_unused(folders: dict[str, str], tmp_path: Path) -> None:
    for folder, key, value in (
        (folders["glpn"], "num_encoder_blocks", 3),
        (folders["dpt"], "num_hidden_layers", 3),
        (folders["dpt"], "qkv_bias", False),
    ):
        copy = shutil.copytree(folder, tmp_path / key)
        about = json.loads((copy / "config.json").read_text())
        lists = {k: v[:value] for k, v in about.items() if key == "num_encoder_blocks" and isinstance(v, list)}
        indices = {"backbone_out_indices": [0, 1, 2, 2]} if key == "num_hidden_layers" else {}
        (copy / "config.json").write_text(json.dumps({**about, **lists, **indices, key: value}))
        with pytest.raises(UserError, match="does not fit") as caught:
            open_teacher(str(copy))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["dpt", "zoedepth", "depth_anything"])
def test_weights_of_integers(folders: dict[str, str], tmp_path: Path, tiny_teacher_folder: str, family: str) -> None:
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree({**folders, "depth_anything": tiny_teacher_folder}[family], tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    whole = {name: t.mul(9).to(torch.int8) if t.is_floating_point() else t for name, t in weights.items()}
    save_file(whole, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="is of type I8, not of floating-point numbers"):
        open_teacher(str(copy))


def test_the_bare_teacher_streams(folders: dict[str, str]) -> None:
    stream, frames = DepthStream(f"teacher:{folders['glpn']}"), pictures(61, 87)
    depth = [stream.step(frame) for frame in frames][-1]
    expected = open_teacher(folders["glpn"]).predict_depth(as_rgb(frames[1:]))
    torch.testing.assert_close(torch.from_numpy(depth), expected[0, 0], rtol=1e-6, atol=0)
    assert stream.depth_kind is DepthKind.METRIC
