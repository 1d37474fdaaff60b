"""Between the upload of a frame and the download of its depth, nothing waits for the device or copies from the host.

Shown without a GPU: the frame runs on fake tensors that say that they lie on one, which have no values that could be
waited for, and calls that wait, or copy a constant from the host, are counted by name.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.geometry import GeometrySpec
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream

SIZE = (90, 120)
WAITS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero", "masked_select"}
COPIES = {"tensor", "as_tensor", "asarray", "from_numpy", "new_tensor"}


class HostCalls(TorchFunctionMode):
    """Counts calls that wait for a device, or copy to it from memory that is not page-locked."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        self.found[name] += name in WAITS | COPIES
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Counts operators that compute, a view does not, and names those that read from or write to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.crossings: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        self.launches += not (returns and all(r.alias_info and not r.alias_info.is_write for r in returns))
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if len({x.device.type for x in tensors}) > 1:
            self.crossings.append(str(func))
        return result


def build_stream(encoder: DepthAnythingEncoder, geometry: GeometrySpec | None = None) -> DepthStream:
    """The default recipe and the affine: tokens and depth are carried along the motion; cuts and gaps are watched."""
    spec = TemporalSpec(*(ScaleSpec(n, backend="reference", initial_gain=0.5, advect=n == 1) for n in (0, 1, 2, 1)))
    motion = MotionSpec(short_side=56)
    student = VideoMambaDepth(
        copy.deepcopy(encoder), encoder.head, spec, True, motion, OutputSpec(affine=0.8), geometry
    )
    return DepthStream(student, device="cpu", batch_size=2, resets=ResetPolicy(max_gap_s=1.0))


@pytest.fixture
def stream(tiny_encoder: DepthAnythingEncoder) -> DepthStream:
    return build_stream(tiny_encoder)


@pytest.fixture(params=[None, GeometrySpec(short_side=56)], ids=["recipe", "with geometry"])
def fake_stream(tiny_encoder: DepthAnythingEncoder, request: pytest.FixtureRequest) -> Iterator[DepthStream]:
    """The stream on a GPU that is not there."""
    stream = build_stream(tiny_encoder, request.param)
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        try:
            mode.from_tensor(torch.zeros(1)).to("cuda")
        except RuntimeError:  # PyTorch 2.6
            pytest.skip("this version of PyTorch makes no fake tensors of a GPU that is not there")
        for module in stream.model.modules():
            for kept in (module._parameters, module._buffers):
                for name, tensor in kept.items():
                    if tensor is not None:
                        kept[name] = mode.from_tensor(tensor).to("cuda")
        stream.device = torch.device("cuda")
        stream.hooks = (ResetPolicy(),)  # gaps are found on the host, from times that are there
        yield stream


def advance(stream: DepthStream, num_frames: int = 3) -> list[tuple[Tensor, Tensor]]:
    frames = [torch.rand(2, 3, *SIZE, device=stream.device) for _ in range(num_frames)]
    return [stream._advance(rgb, [i / 30, i / 30]) for i, rgb in enumerate(frames)]


def test_a_frame_waits_for_nothing(fake_stream: DepthStream) -> None:
    with HostCalls() as calls, Operators() as operators:
        advance(fake_stream, 1)
        first = operators.launches
        depth, is_finite = advance(fake_stream, 1)[-1]
    assert depth.shape == (2, 1, *SIZE)
    assert is_finite.shape == ()
    assert not +calls.found
    assert not operators.crossings
    # A bound, so that they do not creep up: a GPU needs about 5 µs for each that no graph covers. Measured without the
    # affine, most of them of the flow: 9626, of which the focal length's search is a sixth, and 2035.
    has_geometry = fake_stream.model.geometry is not None
    assert operators.launches - first <= (10000 if has_geometry else 2240)


@pytest.mark.parametrize("name", ["item", "new_tensor"])
def test_the_count_can_fail(stream: DepthStream, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: a value that is read, and a constant that is copied, are found."""
    encode = stream.model.encode

    def encode_badly(clip: Tensor, **options: Any) -> dict[str, Tensor]:
        clip.amax().item() if name == "item" else clip.new_tensor([1.0])
        return encode(clip, **options)

    monkeypatch.setattr(stream.model, "encode", encode_badly)
    with HostCalls() as calls:
        advance(stream, 1)
    assert calls.found[name] == 1


@pytest.mark.parametrize(
    "cross",
    [
        lambda x: x.to("cpu"),
        lambda x: torch.empty(x.shape).copy_(x),
        lambda x: torch.arange(3).to(x.device),
        lambda x: x[torch.tensor([0])],
    ],
    ids=["read", "copied out", "copied in", "index of the host"],
)
def test_crossings_are_found(fake_stream: DepthStream, cross: Callable[[Tensor], Tensor]) -> None:
    frame = torch.rand(2, 3, *SIZE, device=fake_stream.device)
    with Operators() as operators:
        cross(frame)
    assert operators.crossings


def test_reasons_are_read_later_and_are_the_same(stream: DepthStream) -> None:
    dark, bright = torch.rand(2, 3, *SIZE) * 0.1, 0.9 + 0.1 * torch.rand(2, 3, *SIZE)
    stripes = torch.linspace(0, 20, SIZE[1]).sin().abs().expand(2, 3, *SIZE)
    reasons = []
    for i, rgb in enumerate([dark, dark, stripes * bright, stripes * bright]):
        stream.step_tensor(rgb, [i / 30, i / 30 + 5 * (i == 3)])
        reasons.append(stream.reset_reasons)
        assert stream.reset_reasons == reasons[-1]
    assert reasons[0] == ("start", "start")
    assert reasons[1] == ("", "")
    assert reasons[3] == ("", "gap")
