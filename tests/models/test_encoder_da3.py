"""Depth Anything 3: the depth, sky and confidence of its own program, as teacher and as encoder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from depth_models import (
    DA3_CHANNELS,
    DA3_FUSION,
    DA3_GRID,
    DA3_NETS,
    DA3_WIDTH,
    depth_anything_3_weights,
    save_depth_anything_3,
)
from safetensors.torch import save_file
from tiny import tiny_student
from torch import Tensor, nn

from videomamba_depth.models.checkpoint import (
    bare_teacher,
    describe_encoder,
    load_student,
    save_student,
    student_weights,
)
from videomamba_depth.models.encoder_da3 import Da3Head, DepthAnything3Encoder, block_plan
from videomamba_depth.models.teachers import open_encoder, open_teacher
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError

SIZE = (42, 70)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("da3")
    return {name: save_depth_anything_3(name, root / name) for name in DA3_NETS}


def pixels() -> Tensor:
    """Return one normalized frame, the same everywhere."""
    return torch.arange(3 * SIZE[0] * SIZE[1]).mul(0.37).sin().reshape(1, 3, *SIZE)


def maps_of(folder: str) -> dict[str, Tensor]:
    teacher = open_teacher(folder)
    assert isinstance(teacher.head, Da3Head)
    with torch.no_grad():
        return teacher.head.maps(teacher.encode_pixels(pixels()))


RECORDED: dict[str, dict[str, list[float]]] = {
    "da3mono-large": {
        "depth": [1.15249, 0.961388, 0.718259, 0.666467, 1.243616, 1.725689],
        "sky": [0.485159, 0.223869, 0.0, 0.0, 0.0, 0.263253],
    },
    "da3metric-large": {
        "depth": [1.15249, 0.961388, 0.718259, 0.666467, 1.243616, 1.725689],
        "sky": [0.485159, 0.223869, 0.0, 0.0, 0.0, 0.263253],
    },
    "da3-small": {
        "depth": [1.100754, 0.5905, 0.784181, 0.812407, 1.129515, 2.160791],
        "confidence": [1.988652, 1.671808, 1.868248, 1.900597, 1.679121, 1.889856],
    },
    "da3-giant": {
        "depth": [1.115856, 0.682705, 0.568673, 0.703174, 1.391002, 1.487773],
        "confidence": [2.39363, 1.69261, 1.674886, 1.585873, 1.654057, 1.485825],
    },
}


def sampled(x: Tensor) -> Tensor:
    return x.flatten()[:: 42 * 70 // 6 + 1]


@pytest.mark.parametrize("name", DA3_NETS)
def test_the_maps_are_those_that_the_package_gave(folders: dict[str, str], name: str) -> None:
    """Numbers that version 0.1.1 of `depth-anything-3` gave for these weights and this frame."""
    found = maps_of(folders[name])
    found["depth"] = 1 / found["depth"]
    for key, values in RECORDED[name].items():
        torch.testing.assert_close(sampled(found[key]), torch.tensor(values), rtol=1e-5, atol=1e-6)  # measured 4e-7


@pytest.mark.parametrize("name", DA3_NETS)
def test_parity_with_the_package(folders: dict[str, str], name: str) -> None:
    """On every pixel, where the package is installed."""
    model = pytest.importorskip("depth_anything_3.model.da3").DepthAnything3Net
    theirs = package_maps(model, name)
    for key, ours in maps_of(folders[name]).items():
        torch.testing.assert_close(
            1 / ours if key == "depth" else ours, theirs[key].reshape(ours.shape), rtol=2e-6, atol=2e-6
        )


def package_maps(model: Any, name: str) -> dict[str, Tensor]:
    """Return what the package's network gives for the weights of a tiny checkpoint, before it replaces the sky."""
    from depth_anything_3.model.dinov2.vision_transformer import DinoVisionTransformer
    from depth_anything_3.model.dpt import DPT
    from depth_anything_3.model.dualdpt import DualDPT

    options = dict(DA3_NETS[name])
    layers = options.pop("out_layers")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pretrained = DinoVisionTransformer(
                img_size=14 * DA3_GRID, patch_size=14, embed_dim=DA3_WIDTH, depth=6, num_heads=DA3_WIDTH // 64,
                ffn_layer="swiglufused" if name == "da3-giant" else "mlp", **options,
            )  # fmt: skip

        def forward(self, x: Tensor, **others: Any) -> Any:
            return self.pretrained.get_intermediate_layers(x, layers, **others)

    any_view = options["cat_token"]
    head = (DualDPT if any_view else DPT)(
        dim_in=DA3_WIDTH * (1 + any_view), output_dim=1 + any_view, features=DA3_FUSION, out_channels=DA3_CHANNELS
    )
    network = model(Net(), head).eval()
    weights = {
        key.removeprefix("model."): t for key, t in depth_anything_3_weights(name).items() if "cam_dec" not in key
    }
    missing, unknown = network.load_state_dict(weights, strict=False)
    assert not unknown
    assert all("_aux" in key for key in missing)
    with torch.no_grad():
        found = network.head(network.backbone(pixels()[None])[0], *SIZE, patch_start_idx=0)
    return {"depth": found.depth, **({"confidence": found.depth_conf} if any_view else {"sky": found.sky})}


@pytest.mark.parametrize(
    "wrong",
    [
        {"cat_token": "false"},
        *({"out_layers": layers} for layers in ("2345", [2.0, 3.5, 4, 5], [2, 3, 4, 6], [-4, 3, 4, 5], [5, 4, 3, 2])),
        *({"alt_start": start} for start in (2.7, True, None, "two", -7, 99)),
        {"rope_start": 6},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        block_plan({**DA3_NETS["da3-small"], **wrong}, 6)


def test_kinds_of_depth(folders: dict[str, str]) -> None:
    rgb = torch.rand(1, 3, 61, 87, generator=torch.Generator().manual_seed(0))
    mono, relative = open_teacher(folders["da3mono-large"]), open_teacher(folders["da3metric-large"])
    meters = open_teacher(folders["da3metric-large"], horizontal_fov_deg=60.0)
    assert mono.depth_kind is relative.depth_kind is DepthKind.RELATIVE
    assert meters.depth_kind is DepthKind.METRIC
    focal_px = 0.5 * 84 / math.tan(math.radians(30))  # frames of 87 px are shown to the model at 84
    features = meters.encode_frame(rgb)
    torch.testing.assert_close(
        meters.decode(features, (56, 84)), focal_px / 300 / relative.decode(features, (56, 84)), rtol=1e-5, atol=0
    )
    assert meters.cache_key() != open_teacher(folders["da3metric-large"], horizontal_fov_deg=70.0).cache_key()


def test_the_sky_and_what_is_not_trusted_have_no_label(folders: dict[str, str]) -> None:
    rgb = torch.rand(2, 3, 42, 70, generator=torch.Generator().manual_seed(0))
    for name, options in (("da3mono-large", {}), ("da3-small", {"min_confidence": 2.0})):
        teacher = open_teacher(folders[name], **options)  # type: ignore[arg-type]
        assert teacher.masks
        depth, labels = teacher.predict_depth(rgb), teacher.predict_labels(rgb)
        known = torch.isfinite(labels)
        assert 0.02 < known.float().mean() < 0.98
        assert torch.equal(labels[known], depth[known])
        assert torch.isfinite(depth).all()
    assert not open_teacher(folders["da3-small"]).masks


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("da3mono-large", {"horizontal_fov_deg": 60.0}, "only DA3METRIC-LARGE makes meters of it"),
        ("da3mono-large", {"depth_kind": DepthKind.METRIC}, "leave the key out"),
        ("da3mono-large", {"min_confidence": 2.0}, "has no confidence; leave the key out"),
        *(
            (name, {"horizontal_fov_deg": fov}, "fov_deg must be above 0 and at most 179; got")
            for name, fov in (
                ("da3metric-large", 0.0),
                ("da3metric-large", -60.0),
                ("da3metric-large", 180.0),
                ("tiny", math.nan),
            )
        ),
        *(("da3-small", {"min_confidence": c}, "must be a number, 1 or more; got") for c in (0.5, math.inf, math.nan)),
        ("tiny", {"horizontal_fov_deg": 60.0}, "is for Depth Anything 3"),
        ("tiny", {"min_confidence": 2.0}, "teacher.min_confidence is for Depth Anything 3"),
    ],
)
def test_options_that_do_not_fit(
    folders: dict[str, str], tiny_teacher_folder: str, name: str, options: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_teacher({**folders, "tiny": tiny_teacher_folder}[name], **options)


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    folder = Path(save_depth_anything_3("da3-small", tmp_path / "small"))
    about = json.loads((folder / "config.json").read_text())
    net = about["config"]["net"]
    for changed, message in (
        ({"config": {"anyview": {}, "metric": {}}}, "nests two models"),
        ({"config": {"net": {**net, "out_layers": [1]}}}, "must be the numbers of 4 blocks"),
        ({"config": {"net": {**net, "qknorm_start": 1}}}, r"tensors missing .*blocks\.1\.attn\.q_norm"),
        ({"config": None}, "cannot load a depth model"),
        ({"config": {}}, r"\(there is no 'net'\)"),
        ({"config": {"net": {**net, "alt_start": -1}}}, r"leaves 1 tensors unused, .*\.camera_token"),
        ({"config": {"net": {**net, "qknorm_start": 4}}}, r"leaves 8 tensors unused, .*blocks\.2\.attn\.k_norm"),
        ({"config": {"net": {k: v for k, v in net.items() if k != "rope_start"}}}, "no rope_start"),
        ({"model_name": "da3metric-large"}, "they find no sky"),
    ):
        (folder / "config.json").write_text(json.dumps(about | changed))
        with pytest.raises(UserError, match=message) as caught:
            open_teacher(str(folder))
        assert "\n" not in str(caught.value)


def test_which_tensors_may_be_unused_and_which_types(tmp_path: Path) -> None:
    folder, weights = Path(save_depth_anything_3("da3-small", tmp_path)), depth_anything_3_weights("da3-small")
    rays = {"model.head.scratch.output_conv1_aux.0.weight": torch.zeros(1), "model.gs_head.x.weight": torch.zeros(1)}
    save_file(weights | rays, folder / "model.safetensors")
    open_teacher(str(folder))
    name = next(name for name in weights if name.startswith("model.backbone.pretrained."))
    other = name.replace("model.backbone.pretrained.", "backbone.")
    save_file(weights | {other: weights[name] + 1}, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"'({name}' and '{other}|{other}' and '{name})' are the same tensor"):
        open_teacher(str(folder))
    save_file(weights | {"model.backbone.pretrained.blocks.9.ls1.gamma": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="there are 7 blocks, and none is the 6th"):  # not a thousand million of them
        open_teacher(str(folder))
    save_file({name: t.mul(9).to(torch.int8) for name, t in weights.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"tensors of integers, first model\.backbone"):
        open_teacher(str(folder))


@pytest.mark.parametrize("name", ["da3mono-large", "da3-small"])
def test_a_student_starts_as_the_teacher(folders: dict[str, str], name: str) -> None:
    encoder, rgb = open_encoder(folders[name]), torch.rand(1, 3, 3, 45, 71)
    assert isinstance(encoder, DepthAnything3Encoder)
    sizes = {key: tuple(x.shape[-2:]) for key, x in encoder.encode_frame(rgb[0]).items()}
    assert sizes == encoder.feature_sizes(45, 71)
    student = tiny_student(encoder, trained=False)  # type: ignore[arg-type]
    torch.testing.assert_close(student(rgb).depth[0], encoder.predict_depth(rgb[0]))


def test_a_student_of_meters_is_loaded_with_its_field_of_view(folders: dict[str, str], tmp_path: Path) -> None:
    encoder, rgb = open_encoder(folders["da3metric-large"], horizontal_fov_deg=60.0), torch.rand(1, 2, 3, 42, 70)
    encoder.save_pretrained(tmp_path / "encoder")
    (tmp_path / "last").mkdir()
    none = ScaleSpec(num_blocks=0)
    student, temporal = bare_teacher(encoder), TemporalSpec(none, none, none, none)
    save_student(tmp_path / "last", student_weights(student), temporal, describe_encoder(encoder, "../encoder"), None)
    again = load_student(tmp_path / "last")
    assert again.depth_kind is DepthKind.METRIC
    assert torch.equal(again(rgb).depth, student(rgb).depth)
