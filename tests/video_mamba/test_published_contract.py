"""The streaming contract in the words of the code that published it, by its own names (`compat/`)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from small_backbones import randomize_

from videomamba_depth import video_mamba

COMPAT = Path(__file__).resolve().parents[2] / "compat"
NAMES = {
    "video_mamba": ("build_videomamba", "PretrainVideoMamba", "allocate_state", "BiMambaRefinerBlock"),
    "video_mamba.determinism": ("configure_determinism", "configure_determinism_from_args"),
    "video_mamba.mamba_simple": ("Mamba",),
    "video_mamba.refiner_backbone": ("BiMambaRefinerBlock",),
    "video_mamba.streaming": ("STREAMING_CONTRACT_VERSION", "validate_state"),
    "video_mamba.videomamba": ("PretrainVideoMamba", "build_videomamba", "load_state_dict", "create_block"),
    "models": ("BiMambaRefinerBlock", "PretrainVideoMamba", "build_videomamba"),
    "models.refiner_backbone": ("BiMambaRefinerBlock",),
    "models.videomamba": ("build_videomamba", "PretrainVideoMamba", "allocate_state"),
    "models.videomamba.mamba_simple": ("Mamba",),
    "models.videomamba.streaming": ("expected_state_shapes", "StreamingState"),
    "models.videomamba.videomamba": ("PretrainVideoMamba", "Block", "create_block", "load_state_dict"),
}


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The modules of compat/, as they are once it is installed."""
    sys.path.insert(0, str(COMPAT))
    before = set(sys.modules)
    yield {name: importlib.import_module(name) for name in NAMES}
    sys.path.remove(str(COMPAT))
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("models", "video_mamba"):
            del sys.modules[name]


def config(**options: Any) -> SimpleNamespace:
    encoder = {
        "img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 16, "channels": 3, "drop_path_rate": 0.0,
        "ssm_cfg": {"use_fast_path": False}, "norm_epsilon": 1e-5, "fused_add_norm": True, "rms_norm": True,
        "residual_in_fp32": True, "bimamba": True, "pool_type": "avg", "kernel_size": 1, "num_frames": 4,
        "use_checkpoint": False, "checkpoint_num": 0, "pretrained": None,
    }  # fmt: skip
    return SimpleNamespace(vision_encoder=SimpleNamespace(**{**encoder, **options}))


def test_every_name_is_offered_and_is_one_thing(modules: dict[str, ModuleType]) -> None:
    for module, names in NAMES.items():
        assert set(names) <= set(modules[module].__all__)
    assert len(modules["video_mamba"].__all__) == 17
    offered = [(name, getattr(module, name)) for module in modules.values() for name in module.__all__]
    for name, thing in offered:
        assert thing is dict(offered)[name], name
        assert thing is getattr(video_mamba, name, thing), name
    assert not any(path.suffix == ".py" for path in COMPAT.iterdir())
    assert {path.parent.name for path in COMPAT.glob("*/__init__.py")} == {"models", "video_mamba"}


@pytest.mark.parametrize("pooled", [True, False])
def test_return_forms_and_states(modules: dict[str, ModuleType], pooled: bool) -> None:
    package = modules["video_mamba"]
    model = randomize_(package.build_videomamba(config(), add_pool_norm=pooled)).eval()
    x = torch.randn(2, 3, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    state = package.allocate_state(model, batch_size=2, dtype=x.dtype, device=x.device)
    package.validate_state(model, state, batch_size=2)
    shapes = package.expected_state_shapes(model, batch_size=2)
    assert shapes[0].conv_state == (2, model.layers[0].mixer.d_inner, 4)
    assert shapes[0].ssm_state == (2, model.layers[0].mixer.d_inner, 16)
    assert model.streaming_contract_version == package.STREAMING_CONTRACT_VERSION
    with torch.no_grad():  # 6 frames on a table of 4
        first = model(x[:, :, :2], mask=None, use_image=False, ssm_state=state, temporal_pos_offset=0)
        second = model(x[:, :, 2:], mask=None, use_image=False, ssm_state=first[-1], temporal_pos_offset=2)
        whole = model(x)
    assert len(first) == model.forward_return_semantics().with_state.count(",") + 1
    tokens = whole[0] if pooled else whole
    torch.testing.assert_close(torch.cat([first[0], second[0]], 1), tokens, atol=1e-4, rtol=0)
    assert first[0].shape[1] == 2 * 4 + (0 if pooled else 1)
    features, _ = model.forward_features(x[:, :, 2:], ssm_state=first[-1], temporal_pos_offset=2)
    torch.testing.assert_close(features, second[0])


def test_a_stream_from_init_state_at_a_later_offset_is_a_continuation(modules: dict[str, ModuleType]) -> None:
    model = modules["models.videomamba.videomamba"].PretrainVideoMamba(
        img_size=8, patch_size=4, depth=2, embed_dim=16, initializer_cfg=None, add_pool_norm=False, device="cpu"
    )
    out, state = model(
        torch.randn(1, 3, 2, 8, 8), ssm_state=model.init_state(1, torch.float32, "cpu"), temporal_pos_offset=3
    )
    assert out.shape == (1, 8, 16)
    assert isinstance(state, list)


def test_layers_stream_by_their_published_signatures(modules: dict[str, ModuleType]) -> None:
    create_block = modules["models.videomamba.videomamba"].create_block
    block = randomize_(create_block(16, ssm_cfg={"use_fast_path": "off"}, layer_idx=3, bimamba=False)).eval()
    assert block.layer_idx == 3
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    hidden, residual = block(x)
    torch.testing.assert_close(residual, x)
    state = block.mixer.allocate_state(batch_size=2)
    first, _, state = block(x[:, :4], state=state, return_state=True)
    second, rest = block(x[:, 4:], state=state, use_checkpoint=True)
    torch.testing.assert_close(torch.cat([first, second], 1), hidden, atol=1e-5, rtol=0)
    torch.testing.assert_close(block(hidden, residual)[1], hidden + residual)
    torch.testing.assert_close(rest, x[:, 4:])
    mixed, (conv, ssm) = block.mixer(block.norm(x), return_state=True)
    torch.testing.assert_close(mixed, hidden)
    assert (conv.shape, ssm.shape) == ((2, 32, 4), (2, 32, 16))
    with pytest.raises(ValueError, match="pass state="):
        block(x, ssm_state=ssm)
    mamba = modules["video_mamba.mamba_simple"].Mamba(
        d_model=16, d_state=8, layer_idx=0, bimamba=True, dt_init="random"
    )
    assert mamba(x).shape == x.shape
    placed = modules["video_mamba.mamba_simple"].Mamba(
        16, 8, 3, 1
    )  # d_state, d_conv and expand, in the published order
    assert (placed.d_state, placed.d_conv, placed.d_inner) == (8, 3, 16)
    with pytest.raises(ValueError, match="unknown keys"):
        modules["video_mamba.mamba_simple"].Mamba(d_model=16, d_stat=8)
    with pytest.raises(ValueError, match="norm_epsilon"):
        create_block(16, norm_epsilon=-1.0)


def test_the_refiner_takes_the_options_of_its_layers(modules: dict[str, ModuleType]) -> None:
    block = modules["models.refiner_backbone"].BiMambaRefinerBlock(8, {"d_state": 4}, rms_norm=False, layer_idx=2)
    assert block.block_fwd.norm.bias is not None
    assert block(torch.zeros(1, 2, 3, 8), *block.allocate_state(1))[0].shape == (1, 2, 3, 8)


def test_checkpoint_rules(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    videomamba = modules["video_mamba.videomamba"]
    model, other = (randomize_(videomamba.build_videomamba(config()), seed) for seed in (0, 1))
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    torch.save({"model": model.state_dict()}, tmp_path / "wrapped.pth")
    videomamba.load_state_dict(tmp_path / "plain.pth", other, ckpt_num_frame=4, num_frames=4)
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    with pytest.raises(ValueError, match="plain state_dict checkpoint"):
        videomamba.load_state_dict(tmp_path / "wrapped.pth", other, ckpt_num_frame=4, num_frames=4)
    with pytest.raises(ValueError, match="num_frames=16 does not fit"):
        videomamba.load_state_dict(tmp_path / "plain.pth", other, ckpt_num_frame=4, num_frames=16)
    with pytest.raises(AttributeError, match="ckpt_num_frame"):
        videomamba.build_videomamba(config(pretrained=str(tmp_path / "plain.pth")))
    longer = videomamba.build_videomamba(config(pretrained=str(tmp_path / "plain.pth"), ckpt_num_frame=4, num_frames=8))
    assert longer.temporal_pos_embedding.shape == (1, 8, 16)
    incomplete = config()
    del incomplete.vision_encoder.channels
    with pytest.raises(AttributeError, match="channels"):
        videomamba.build_videomamba(incomplete)
