"""Acceptance points of the state itself: what is refused, and what comes back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_backbones import clip, contract, state_tensors, stream

from videomamba_depth.video_mamba import (
    STREAMING_CONTRACT_VERSION,
    StateShape,
    allocate_state,
    expected_state_shapes,
    forward_return_semantics,
    model_forward_return_semantics,
    validate_state,
)


def _replace(index: int, part: int, change: Callable[[torch.Tensor], Any]) -> Callable[[list], list]:
    def apply(state: list) -> list:
        layer = list(state[index])
        layer[part] = change(layer[part])
        return [*state[:index], tuple(layer), *state[index + 1 :]]

    return apply


BROKEN: dict[str, tuple[Callable[[list], Any], type[Exception], str]] = {
    "missing layer": (lambda s: s[:-1], ValueError, "must have 3 entries.*got 2"),
    "extra layer": (lambda s: [*s, s[0]], ValueError, "must have 3 entries.*got 4"),
    "empty": (lambda s: [], ValueError, "must have 3 entries.*got 0"),
    "dict without a layer": (lambda s: {0: s[0], 2: s[2]}, ValueError, r"keys 0 to 2.*got \[0, 2\]"),
    "dict with an extra layer": (lambda s: dict(enumerate([*s, s[0]])), ValueError, "keys 0 to 2"),
    "dict with odd keys": (lambda s: {"a": s[0], 1: s[1], None: s[2]}, ValueError, "keys 0 to 2"),
    "wrong container": (lambda s: torch.zeros(3), TypeError, "must be a list, a tuple or a dict.*Tensor"),
    "a string": (lambda s: "abc", TypeError, "must be a list, a tuple or a dict.*str"),
    "a generator": (lambda s: (layer for layer in s), TypeError, "must be a list, a tuple or a dict"),
    "entry of one": (lambda s: [s[0], s[1][:1], s[2]], TypeError, "layer 1 must be a pair.*tuple of 1"),
    "entry of three": (lambda s: [s[0], (*s[1], s[1][0]), s[2]], TypeError, "layer 1 must be a pair.*tuple of 3"),
    "entry is a tensor": (lambda s: [s[0], s[1][1], s[2]], TypeError, "layer 1 must be a pair.*Tensor"),
    "entry is None": (lambda s: [s[0], None, s[2]], TypeError, "layer 1 must be a pair.*NoneType"),
    "conv no tensor": (_replace(1, 0, lambda t: t.tolist()), TypeError, "layer 1: conv_state must be a tensor.*list"),
    "ssm no tensor": (_replace(2, 1, lambda t: None), TypeError, "layer 2: ssm_state must be a tensor.*NoneType"),
    "conv batch": (_replace(0, 0, lambda t: t[:1]), ValueError, r"layer 0: conv_state.*\(2, 32, 4\); got \(1, 32, 4\)"),
    "ssm batch": (
        _replace(1, 1, lambda t: t.repeat(2, 1, 1)),
        ValueError,
        r"layer 1: ssm_state.*\(2, 32, 4\); got \(4",
    ),
    "conv width": (_replace(2, 0, lambda t: t[..., :3]), ValueError, r"layer 2: conv_state.*got \(2, 32, 3\)"),
    "ssm states": (_replace(2, 1, lambda t: t[..., :3]), ValueError, r"layer 2: ssm_state.*got \(2, 32, 3\)"),
    "ssm ndim": (_replace(0, 1, lambda t: t.flatten(1)), ValueError, r"layer 0: ssm_state.*got \(2, 128\)"),
    "conv dtype": (
        _replace(1, 0, lambda t: t.bfloat16()),
        ValueError,
        "layer 1: conv_state must have dtype torch.float32",
    ),
    "ssm dtype": (_replace(1, 1, lambda t: t.half()), ValueError, "layer 1: ssm_state must have dtype torch.float32"),
    "ssm double": (_replace(0, 1, lambda t: t.double()), ValueError, "ssm_state must have dtype torch.float32"),
    "conv sparse": (_replace(1, 0, torch.Tensor.to_sparse), ValueError, "layer 1: conv_state must be dense"),
    "conv device": (_replace(1, 0, lambda t: t.to("meta")), ValueError, "conv_state must be on device cpu.*got meta"),
    "ssm device": (_replace(0, 1, lambda t: t.to("meta")), ValueError, "ssm_state must be on device cpu.*got meta"),
}


@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
@pytest.mark.parametrize("name", BROKEN)
def test_point_07_a_broken_state_is_refused_by_validate_and_forward(name: str) -> None:
    break_it, error, message = BROKEN[name]
    model = contract(pool_type="avg")
    state = break_it(stream(model, clip(2), [2])[1])
    with pytest.raises(error, match=message):
        validate_state(model, state, 2)
    computed = []
    model.patch_embed.proj.register_forward_hook(lambda *_: computed.append(True))
    for call in (model, model.forward_features):
        state = break_it(stream(model, clip(2), [2])[1])
        computed.clear()
        with pytest.raises(error, match=message):
            call(clip(1), ssm_state=state, temporal_pos_offset=2)
        assert not computed, "the state is validated before anything is computed"


def test_point_07_good_states_pass() -> None:
    model = contract()
    for state in (
        model.allocate_state(2),
        model.allocate_state(2, as_dict=True),
        tuple(model.init_state(2)),
        allocate_state(model, 2, dtype=torch.float32, device="cpu"),
        [list(layer) for layer in model.allocate_state(2)],
    ):
        validate_state(model, state, 2)
        model(clip(1), ssm_state=state)
    with pytest.raises(ValueError, match="conv_state must have shape"):
        validate_state(model, model.allocate_state(2), 3)
    for batch_size in (0, 1.5, True, "2", None):
        with pytest.raises(ValueError, match="batch_size must be a positive integer; got"):
            model.allocate_state(batch_size)
    with pytest.raises(TypeError, match="dtype of a state must be floating point; got"):
        model.allocate_state(2, dtype=torch.int32)
    with pytest.raises(TypeError, match="does not stream"):
        allocate_state(torch.nn.Linear(1, 1), 2)


def test_point_07_dtypes_follow_the_model() -> None:
    low = contract().bfloat16()
    for dtype in (None, torch.float32, torch.bfloat16):
        state = low.allocate_state(1, dtype=dtype)
        assert state[0][0].dtype == (dtype or torch.float32)
        assert state[0][1].dtype == torch.float32
        for _ in range(2):  # the dtypes that came in come back
            tokens, state = low.forward_features(
                clip(1, batch=1).bfloat16(), ssm_state=state, temporal_pos_offset=int(bool(state[0][1].any()))
            )
            assert tokens.dtype == torch.bfloat16
            assert state[0][0].dtype == (dtype or torch.float32)
    double = contract().double()
    assert {t.dtype for t in state_tensors(double.allocate_state(1))} == {torch.float64}
    with pytest.raises(ValueError, match=r"dtype torch.float64"):
        validate_state(double, contract().allocate_state(1), 1)


@pytest.mark.parametrize("container", [list, tuple, dict])
def test_point_08_containers_come_back_as_they_came(container: type) -> None:
    model, x = contract(pool_type="avg"), clip(4)
    plain = model.allocate_state(2)
    state = dict(enumerate(plain)) if container is dict else container(plain)
    reference, final = stream(model, x, [1, 3])
    outputs, offset = [], 0
    for chunk in x.split([1, 3], dim=2):
        _, _, next_state = model(chunk, ssm_state=state, temporal_pos_offset=offset)
        tokens, state = model.forward_features(chunk, ssm_state=state, temporal_pos_offset=offset)
        assert type(state) is type(next_state) is container
        outputs.append(tokens)
        offset += chunk.shape[2]
    torch.testing.assert_close(torch.cat(outputs, 1), reference)
    if container is dict:
        assert list(state) == [0, 1, 2]
    assert all(type(layer) is tuple for layer in (state.values() if container is dict else state))
    for ours, theirs in zip(state_tensors(state), state_tensors(final), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_point_08_a_dict_in_another_order_is_read_by_its_keys() -> None:
    model, x = contract(pool_type="avg"), clip(3)
    _, state = stream(model, x[:, :, :2], [2], state=model.allocate_state(2, as_dict=True))
    shuffled = {index: state[index] for index in (2, 0, 1)}
    a = model(x[:, :, 2:], ssm_state=state, temporal_pos_offset=2)[0]
    assert torch.equal(model(x[:, :, 2:], ssm_state=shuffled, temporal_pos_offset=2)[0], a)


def _through_torch(state: Any, path: Path) -> Any:
    torch.save(state, path)
    return torch.load(path, weights_only=True)


def _through_safetensors(state: Any, path: Path) -> Any:
    save_file({f"{i}.{k}": t.contiguous() for i, pair in enumerate(state) for k, t in enumerate(pair)}, path)
    tensors = load_file(path)
    return [(tensors[f"{i}.0"], tensors[f"{i}.1"]) for i in range(len(state))]


@pytest.mark.parametrize(
    "reload",
    [
        _through_torch,
        _through_safetensors,
        lambda state, _: copy.deepcopy(state),
        lambda state, _: [(c.detach().clone(), s.detach().clone()) for c, s in state],
        lambda state, _: torch.utils._pytree.tree_map(torch.clone, state),
    ],
    ids=["torch.save", "safetensors", "deepcopy", "comprehension", "tree_map"],
)
@pytest.mark.parametrize("seen", [0, 3])
def test_point_08_a_reloaded_state_continues_identically(reload: Callable, seen: int, tmp_path: Path) -> None:
    model, x = contract(pool_type="avg"), clip(5)
    with torch.no_grad():
        state = stream(model, x[:, :, :seen], [seen])[1] if seen else model.allocate_state(2)
        reloaded = reload(state, tmp_path / "state")
        one = model(x[:, :, seen:], ssm_state=state, temporal_pos_offset=seen)
        two = model(x[:, :, seen:], ssm_state=reloaded, temporal_pos_offset=seen)
    assert torch.equal(one[0], two[0])
    assert one[0].shape[1] == (5 - seen) * 4
    assert all(map(torch.equal, state_tensors(one[2]), state_tensors(two[2])))


def test_point_08_interleaved_streams_do_not_disturb_each_other() -> None:
    model = contract()
    a, b = clip(4, batch=1, seed=1), clip(4, batch=1, seed=2)
    state_a, state_b, outputs_a = model.allocate_state(1), model.allocate_state(1), []
    for t in range(4):
        out, state_a = model.forward_features(a[:, :, t : t + 1], ssm_state=state_a, temporal_pos_offset=t)
        outputs_a.append(out)
        _, state_b = model.forward_features(b[:, :, t : t + 1], ssm_state=state_b, temporal_pos_offset=t)
    assert torch.equal(torch.cat(outputs_a, 1), stream(model, a, [1] * 4)[0])


def test_the_contract_describes_itself() -> None:
    assert STREAMING_CONTRACT_VERSION == "1.0.0" == contract().streaming_contract_version
    model = contract(ssm_cfg={"d_state": 4, "d_conv": 3, "expand": 3})
    shapes = expected_state_shapes(model, 5)
    assert shapes == model.expected_state_shapes(5) == {i: StateShape((5, 48, 3), (5, 48, 4)) for i in range(3)}
    for index, (conv, ssm) in model.allocate_state(5, as_dict=True).items():
        assert (tuple(conv.shape), tuple(ssm.shape)) == (shapes[index].conv_state, shapes[index].ssm_state)
        assert not conv.any()
        assert not ssm.any()
    for pooled in (True, False):
        model = contract(add_pool_norm=pooled)
        semantics = forward_return_semantics(pooled)
        assert model.forward_return_semantics() == model_forward_return_semantics(model) == semantics
        without, with_state = model(clip(1)), model(clip(1), ssm_state=model.allocate_state(2))
        assert semantics.without_state.count(",") == (len(without) - 1 if pooled else 0)
        assert semantics.with_state.count(",") == len(with_state) - 1
    assert model.no_weight_decay() == {"pos_embed", "cls_token", "temporal_pos_embedding"}
    assert model.get_num_layers() == 3
