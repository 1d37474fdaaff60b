"""Five kinds of depth: which turn into which, with the sign and the offset right."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from videomamba_depth.models.encoder_da import FrameEncoder
from videomamba_depth.utils.depth_kind import (
    DepthKind,
    can_convert,
    convert_depth,
    parse_kind,
    require_model_kind,
    valid_depth,
)
from videomamba_depth.utils.errors import UserError

Z = np.array([[0.5, 1.0, 2.0], [4.0, 8.0, 80.0]], np.float32)  # m
MADE = {
    DepthKind.RELATIVE: 3.0 / Z - 1.0,
    DepthKind.AFFINE_DEPTH: 0.2 * Z - 3.0,
    DepthKind.SCALED_INVERSE: 3.0 / Z,
    DepthKind.SCALED_DEPTH: 0.2 * Z,
    DepthKind.METRIC: Z,
}


def residual(values: np.ndarray, of: np.ndarray, with_shift: bool) -> tuple[float, float]:
    """Return the scale that fits `values` to `of` best, and the largest error that is left, by plain least squares."""
    columns = np.stack([values.ravel(), np.ones(values.size)], 1)[:, : 2 if with_shift else 1]
    solution, *_ = np.linalg.lstsq(columns.astype(np.float64), of.ravel().astype(np.float64), rcond=None)
    return float(solution[0]), float(np.abs(columns @ solution - of.ravel()).max())


@pytest.mark.parametrize("to", DepthKind)
@pytest.mark.parametrize("kind", DepthKind)
def test_what_is_converted_is_of_the_new_kind(kind: DepthKind, to: DepthKind) -> None:
    if not can_convert(kind, to):
        with pytest.raises(UserError, match="cannot be turned into"):
            convert_depth(MADE[kind], kind, to)
        return
    got = convert_depth(MADE[kind], kind, to)
    scale, error = residual(got, 1.0 / Z if to.is_inverse else Z, to.has_shift)
    assert scale > 0
    assert error < 1e-4
    if to is DepthKind.METRIC:
        np.testing.assert_array_equal(got, Z)


def test_only_what_has_no_shift_turns_into_inverse_depth() -> None:
    assert [kind for kind in DepthKind if not can_convert(kind, DepthKind.RELATIVE)] == [DepthKind.AFFINE_DEPTH]
    assert [kind for kind in DepthKind if can_convert(kind, DepthKind.METRIC)] == [DepthKind.METRIC]
    assert not can_convert(DepthKind.RELATIVE, DepthKind.SCALED_INVERSE)


def test_two_meters_are_half_an_inverse_meter() -> None:
    assert convert_depth(np.array([2.0]), DepthKind.METRIC, DepthKind.RELATIVE) == np.float32(0.5)


def test_the_files_of_before_keep_their_values() -> None:
    assert DepthKind.RELATIVE.value == "affine_invariant_inverse_depth"
    assert DepthKind.METRIC.value == "metric_depth_m"


def test_what_is_no_value_of_its_kind_is_nan() -> None:
    given = np.array([-1.0, 0.0, 1.0, np.inf, np.nan])
    kept = {kind: np.isfinite(valid_depth(given, kind)).tolist() for kind in DepthKind}
    assert kept[DepthKind.RELATIVE] == kept[DepthKind.AFFINE_DEPTH] == [True, True, True, False, False]
    assert kept[DepthKind.SCALED_INVERSE] == [False, True, True, False, False]
    assert kept[DepthKind.SCALED_DEPTH] == kept[DepthKind.METRIC] == [False, False, True, False, False]
    assert given[0] == -1.0  # the input is left alone
    far = convert_depth(np.array([0.0, 2.0]), DepthKind.SCALED_INVERSE, DepthKind.SCALED_DEPTH)
    assert np.isnan(far[0])
    assert far[1] == 0.5


def test_models_hold_two_kinds() -> None:
    assert require_model_kind(DepthKind.METRIC, "the teacher") is DepthKind.METRIC
    with pytest.raises(UserError, match=r"^the teacher has depth of kind scale_invariant_depth; models take"):
        require_model_kind(DepthKind.SCALED_DEPTH, "the teacher")
    with pytest.raises(UserError, match=r"^FrameEncoder has depth of kind affine_invariant_depth; models take"):
        FrameEncoder(nn.Identity(), (1,) * 4, (1,) * 4, 1, DepthKind.AFFINE_DEPTH, None, None)
    with pytest.raises(UserError, match=r"^x\.npz: 'disparity' is no kind of depth; choose from affine"):
        parse_kind("disparity", "x.npz")
