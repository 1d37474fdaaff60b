"""Dense flow of tensor operations: exact on known motion, independent of its batch, as good as DIS, exportable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import OLD_EXPORTER
from torch import Tensor, nn

from videomamba_depth.data.synthetic import WorldConfig, iter_video
from videomamba_depth.flow import inverse_search, inverse_search_cpp
from videomamba_depth.flow.estimators import (
    DISFlow,
    InverseSearchFlow,
    PairsOnce,
    both_ways,
    build_flow,
    build_stream_flow,
)
from videomamba_depth.flow.inverse_search import InverseSearchSettings, estimate, level_sizes

SMALL = InverseSearchSettings(steps=(1,), warps=(1,), sweeps=2)  # every operation, few times


def texture(height: int, width: int, dx: float = 0.0, dy: float = 0.0) -> Tensor:
    """Return a textured frame [1,3,H,W] whose content has moved by (dx, dy) px."""
    y, x = torch.meshgrid(torch.arange(height) - float(dy), torch.arange(width) - float(dx), indexing="ij")
    waves = [torch.sin(0.31 * x + 0.2 * y), torch.sin(0.43 * y - 0.11 * x), torch.cos(0.17 * x + 0.29 * y)]
    return (0.5 + 0.15 * torch.stack([w + 0.5 * waves[1] for w in waves])).clamp(0, 1)[None]


def noise(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    coarse = torch.rand(count, 3, height // 6, width // 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def error(flow: Tensor, motion: tuple[float, float]) -> Tensor:
    return (flow - torch.tensor(motion).view(1, 2, 1, 1)).norm(dim=1)[:, 8:-8, 8:-8]


@pytest.mark.parametrize("preset", ["medium", "fine"])
@pytest.mark.parametrize(
    ("size", "motion"),
    [((64, 80), (1.0, 0.0)), ((64, 80), (-2.5, 1.5)), ((51, 77), (6.0, 3.0)), ((16, 33), (0.5, -0.5))],
)
def test_a_known_shift_is_found(preset: str, size: tuple[int, int], motion: tuple[float, float]) -> None:
    flow = InverseSearchFlow(preset)(texture(*size), texture(*size, *motion))
    assert flow.shape == (1, 2, *size)
    assert flow.dtype == torch.float32
    middle = error(flow, motion) if size[0] > 16 else (flow - torch.tensor(motion).view(1, 2, 1, 1)).norm(dim=1)
    assert middle.mean() < 0.3  # measured at most 0.1; x and y swapped or negated give > 1


def test_a_change_of_exposure_is_no_motion() -> None:
    before, now = texture(64, 80), texture(64, 80, 2, -1)
    flow = InverseSearchFlow()(before, 0.85 * now + 0.1)
    assert error(flow, (2, -1)).mean() < 0.15


@pytest.mark.parametrize("compiled", [False, True])
def test_pairs_and_directions_are_independent_to_the_bit(compiled: bool) -> None:
    flow = InverseSearchFlow(compiled=compiled)
    frames = noise(4, 50, 66)
    now, before = frames[1:], frames[:-1]
    back, forth = flow.both_ways(now, before)
    for i in range(3):
        assert torch.equal(flow(now[i : i + 1], before[i : i + 1]), back[i : i + 1])
        assert torch.equal(flow(before[i : i + 1], now[i : i + 1]), forth[i : i + 1])
    assert flow(now[:0], before[:0]).shape == (0, 2, 50, 66)


def test_both_ways_of_any_estimator() -> None:
    now, before = noise(2, 32, 40).split(1)
    for flow in (DISFlow("fast"), InverseSearchFlow("fine")):
        back, forth = both_ways(flow, now, before)
        assert torch.equal(back, flow(now, before))
        assert torch.equal(forth, flow(before, now))


def test_no_pair_is_estimated_twice() -> None:
    calls: list[int] = []

    def dis(source: Tensor, target: Tensor) -> Tensor:
        calls.append(len(source))
        return DISFlow("ultrafast")(source, target)

    clip = noise(4, 32, 40)
    flow = PairsOnce(dis)
    back, forth = both_ways(flow, clip[1:], clip[:-1])
    swapped = both_ways(flow, clip[:-1], clip[1:])
    assert calls == [3, 3]
    assert swapped[0] is forth
    assert swapped[1] is back
    assert torch.equal(back, DISFlow("ultrafast")(clip[1:], clip[:-1]))
    both_ways(flow, clip[1:].clone(), clip[:-1])  # other frames, as far as it knows
    assert calls == [3] * 4


def test_always_float32() -> None:
    a, b = noise(2, 32, 40).split(1)
    flow = InverseSearchFlow("fine")
    expected = flow(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(flow(a, b), expected)
    assert flow(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def test_flat_frames_do_not_move() -> None:
    flow = InverseSearchFlow()(torch.full((1, 3, 40, 40), 0.3), torch.full((1, 3, 40, 40), 0.7))
    assert flow.abs().max() == 0


@pytest.mark.parametrize("motion", ["moving", "fast", "static"])
def test_as_good_as_dis_where_the_flow_is_exact(motion: str) -> None:
    config = WorldConfig(96, 120, 3, camera_motion=motion)  # type: ignore[arg-type]
    videos = [list(iter_video(8_100_000_000 + i, config)) for i in range(3)]
    flows = {"inverse search": InverseSearchFlow(), "dis": DISFlow()}
    errors: dict[str, list[float]] = {name: [] for name in flows}
    for frames in videos:
        now, before = (torch.from_numpy(f.rgb).permute(2, 0, 1)[None] / 255 for f in (frames[2], frames[1]))
        for name, flow in flows.items():
            estimated = flow(now, before)[0].permute(1, 2, 0).numpy()
            seen = frames[2].visible_bwd
            errors[name].append(float(np.linalg.norm(estimated - frames[2].flow_bwd, axis=-1)[seen].mean()))
    assert np.mean(errors["inverse search"]) < 1.1 * np.mean(errors["dis"]) + 0.02  # static: 0.056 and 0.050 px


def test_a_stream_s_dis_is_inverse_search_beside_a_cpu() -> None:
    pair, flow = (texture(48, 64), texture(48, 64, 2.0)), build_stream_flow("dis_fast")
    for found, expected in zip(both_ways(flow, *pair), both_ways(DISFlow("fast"), *pair), strict=True):
        assert torch.equal(found, expected)
    meta = flow(*(frame.to("meta") for frame in pair))  # DIS would read the pixels
    assert (meta.device.type, meta.shape) == ("meta", (1, 2, 48, 64))


def test_levels_down_to_twelve_px_and_never_one_alone() -> None:
    assert level_sizes(112, 140) == [(112, 140), (56, 70), (28, 35), (14, 18)]
    assert level_sizes(17, 16) == [(17, 16), (9, 8)]


@pytest.mark.skipif(inverse_search_cpp.library() is None, reason="no C++ compiler")
@pytest.mark.parametrize("size", [(9, 8), (26, 35), (56, 70)])
def test_the_compiled_kernel_is_the_same_maths(size: tuple[int, int]) -> None:
    source, target = (noise(3, *size, seed=seed)[:, :1].contiguous() for seed in (1, 2))
    flow = 3 * noise(3, *size, seed=3)[:, :2] - 1  # also far out of the frame
    flow[1] *= 5
    for stride in (1, 2, 4):
        expected = inverse_search.search_level(source, target, flow, 2, stride)
        difference = (inverse_search_cpp.search_level(source, target, flow, 2, stride) - expected).abs()
        # A candidate that is as good as another one to rounding may win instead.
        assert difference.median() < 1e-5  # measured 2e-6
        assert (difference > 1e-3).float().mean() < 0.03  # measured 0.01
    for warps in (1, 2):
        expected = inverse_search.refine_level(source, target, flow, warps, 12)
        refined = inverse_search_cpp.refine_level(source, target, flow, warps, 12)
        assert (refined - expected).abs().mean() < 1e-5  # measured 1e-6
        torch.testing.assert_close(refined, expected, rtol=0, atol=5e-3)


def test_without_a_compiler_tensor_operations_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = noise(2, 32, 40).split(1)
    monkeypatch.setattr(inverse_search_cpp, "library", lambda: None)
    assert torch.equal(InverseSearchFlow()(a, b), InverseSearchFlow(compiled=False)(a, b))


class _Flow(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return estimate(a, b, SMALL)


@pytest.mark.skipif(OLD_EXPORTER, reason="the compiler of PyTorch 2.6 and the exporter of 2.8 fail")
def test_compiles_and_exports_as_one_graph_to_onnx_too() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    a, b = noise(2, 26, 35)[:, :1].split(1)
    expected = _Flow()(a, b)
    compiled = torch.compile(_Flow(), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(a, b), expected, rtol=0, atol=1e-5)
    program = torch.export.export(_Flow().eval(), (a, b))
    torch.testing.assert_close(program.module()(a, b), expected, rtol=0, atol=1e-5)
    exported = torch.onnx.export(program, dynamo=True, opset_version=18, verbose=False, optimize=False)
    assert exported is not None
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    names = [node.name for node in session.get_inputs()]
    (flow,) = session.run(None, dict(zip(names, (a.numpy(), b.numpy()), strict=True)))
    torch.testing.assert_close(torch.from_numpy(flow), expected, rtol=0, atol=5e-4)  # measured 1.5e-4


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 px"):
        InverseSearchFlow()(torch.zeros(1, 3, 8, 64), torch.zeros(1, 3, 8, 64))
    with pytest.raises(ValueError, match="preset must be one of"):
        InverseSearchFlow("slow")
    assert isinstance(build_flow("inverse_search_fine"), InverseSearchFlow)
