"""The parts of a layer: norms, stochastic depth, initialization."""

from __future__ import annotations

import pytest
import torch
from small_backbones import SIZE, clip, contract, image_model, masked_model, video_model, vim_model

from videomamba_depth.layers.mamba_mixer import MambaMixer
from videomamba_depth.layers.temporal_block import MambaBlock
from videomamba_depth.video_mamba import BiMambaRefinerBlock, PretrainVideoMamba
from videomamba_depth.video_mamba.backbone_block import LayerNorm, RMSNorm, drop_path_rates
from videomamba_depth.video_mamba.variants import PRESETS, VARIANTS


def test_stochastic_depth_drops_whole_samples_and_rises_with_depth() -> None:
    torch.manual_seed(0)
    layer = contract(drop_path_rate=0.5).train().layers[-1]
    y = layer.drop_path(torch.ones(4000, 2, 3))
    assert torch.equal(y.amin((1, 2)), y.amax((1, 2)))
    assert (y[:, 0, 0] == 0).float().mean().item() == pytest.approx(layer.drop_path.p, abs=0.03)
    assert layer.drop_path.p > 0
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0, 0.1, 0.2])
    with pytest.raises(ValueError, match="must be in"):
        contract(drop_path_rate=1.0)


def test_drop_path_leaves_streaming_alone_in_eval_mode() -> None:
    x = clip(2)
    assert torch.equal(contract(drop_path_rate=0.9)(x)[0], contract()(x)[0])
    assert torch.equal(image_model(drop_path_rate=0.9)(x[:, :, 0]), image_model()(x[:, :, 0]))
    torch.manual_seed(0)
    assert not torch.allclose(contract(drop_path_rate=0.9).train()(x)[0], contract()(x)[0])


def test_norms_compute_in_float32_and_keep_the_weights_dtype() -> None:
    x = 1e3 * torch.randn(2, 64)
    for norm in (RMSNorm(64), LayerNorm(64)):
        exact = norm(x)
        assert exact.dtype == torch.float32
        low = norm.bfloat16()(x)
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), exact, atol=2e-2, rtol=1e-2)
    torch.testing.assert_close(RMSNorm(64)(x).square().mean(-1), torch.ones(2), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("in_fp32", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_the_residual_stream_keeps_the_precision_that_is_asked_for(in_fp32: bool, dtype: torch.dtype) -> None:
    x = clip(2).bfloat16()
    assert contract(residual_in_fp32=in_fp32).bfloat16().dense_features(x, (2,))[0].dtype == dtype
    assert vim_model(residual_in_fp32=in_fp32).bfloat16().dense_features(x[:, :, 0], (2,))[0].dtype == dtype


def test_a_new_model_is_initialized_as_documented() -> None:
    torch.manual_seed(0)
    model = PretrainVideoMamba(**{**SIZE, "embed_dim": 64, "depth": 9})
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.4)
    assert model.layers[0].mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.layers[0].mixer.out_proj.weight.abs().max().item() == pytest.approx(128**-0.5 / 3, rel=0.02)
    step = torch.nn.functional.softplus(model.layers[3].mixer.dt_proj.bias)
    assert 0.0009 < step.min() < step.max() < 0.11
    assert not model.temporal_pos_embedding.any()


def test_every_family_and_the_temporal_stacks_run_the_same_mixer(monkeypatch: pytest.MonkeyPatch) -> None:
    image, block = clip(1)[:, :, 0], MambaBlock(16, age_features=2, backend="reference")
    runs = [
        lambda: contract()(clip(2)),
        lambda: image_model()(image),
        lambda: video_model()(clip(2)),
        lambda: masked_model()(clip(2)),
        lambda: vim_model()(image),
        lambda: vim_model(bimamba_type="none", if_bidirectional=True)(image),
        lambda: BiMambaRefinerBlock(16)(torch.randn(2, 3, 16)),
        lambda: block(torch.randn(2, 3, 16), torch.rand(1, 3, 2)),
    ]
    calls, scan_branch = [], MambaMixer.scan_branch
    monkeypatch.setattr(MambaMixer, "scan_branch", lambda *args: calls.append(1) or scan_branch(*args))
    for run, expected in zip(runs, (3, 6, 6, 4, 8, 4, 2, 1), strict=True):  # layers × directions; masked leaves one out
        calls.clear()
        run()
        assert len(calls) == expected


def test_presets_build_streaming_models() -> None:
    ours, published = ("throughput", "balanced", "low_latency"), ("gpu_throughput", "gpu_balanced", "gpu_low_latency")
    assert [PRESETS[name].chunk_frames for name in (*ours, *published)] == [16, 4, 1, 64, 32, 8]
    assert [PRESETS[name].deterministic for name in published] == [False, True, None]
    for preset in PRESETS.values():
        with torch.device("meta"):
            model = preset.build()
        assert model.depth == VARIANTS[preset.variant].depth
        assert (model.pool_type, str(model.temporal_policy)) == ("avg", "clamp")


@pytest.mark.parametrize("tubelet", [1, 2])
def test_presets_stream_the_same_in_calls_of_their_length(tubelet: int) -> None:
    frames = 18 * tubelet
    model, x = contract(pool_type="avg", temporal_policy="clamp", kernel_size=tubelet), clip(frames)
    with torch.no_grad():
        tokens, pooled = model(x, keep_temporal=True)
        for preset in PRESETS.values():
            if preset.chunk_frames % tubelet:
                continue
            calls = list(preset.stream(model, x))
            assert len(calls) == -(-frames // preset.chunk_frames)
            torch.testing.assert_close(torch.cat([call[0] for call in calls], 1), tokens, atol=1e-4, rtol=0)
            torch.testing.assert_close(torch.cat([call[1] for call in calls], 1), pooled, atol=1e-4, rtol=0)
