"""From decoded frames of any color space to uint8 RGB as a screen shows it: BT.709 primaries, sRGB or BT.709 curve."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from videomamba_depth.data.video.info import Orientation, warn_once

# Code points of ITU-T H.273, as FFmpeg numbers them.
_UNSPECIFIED, _BT709, _BT2020, _BT2020_CONSTANT = 2, 1, 9, 10
_PQ, _HLG = 16, 18
_MATRICES = {0, 1, 2, 3, 4, 5, 6, 7, 9}  # that libswscale knows: RGB, BT.709, FCC, BT.601, SMPTE 240M, BT.2020
_NEAR_PRIMARIES = {0, _BT709, _UNSPECIFIED, 5, 6, 7, _BT2020}  # BT.601's are taken as BT.709's
_FAR_TRANSFERS = {8, 9, 10, 17}  # linear, logarithmic and that of cinemas: nothing like the curve of BT.709
_HD_WIDTH, _HD_HEIGHT = 1280, 577  # from these on, video that names no matrix is BT.709, as players take it
_WHITE_NITS, _PEAK_NITS = (
    203.0,
    1000.0,
)  # HDR reference white (BT.2408-7, 2.2); what is brighter than the peak is clipped
_KNEE = 0.9  # of white, in linear light: highlights above it are rolled off
_BT2020_TO_BT709 = np.array(  # linear light (BT.2087-0, inverse of table 2)
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
_BT2020_LUMA = np.array([[0.2627, 0.6780, 0.0593]], np.float32)
_HLG_GAMMA = 1.2  # of a display of 1000 cd/m² (BT.2100-2, table 5)
_LEVELS = 1 << 16


def to_rgb(frame: Any, orientation: Orientation, width: int, height: int) -> np.ndarray:
    """Convert a decoded frame of any pixel format to uint8 RGB [height,width,3], as displayed.

    Deeper samples are rounded to 8 bit, gray is repeated, alpha is dropped. The stream's own matrix and range are used;
    where it names no matrix, BT.709 from HD up and BT.601 below. PQ, HLG and BT.2020 are brought to BT.709 primaries:
    reference white (203 cd/m²) becomes white, highlights above 0.9 of it are rolled off, channel by channel. A frame of
    another size (non-square pixels, a stream that changes size midway) is scaled.
    """
    stored = (height, width) if orientation.transpose else (width, height)
    size = {} if (frame.width, frame.height) == stored else {"width": stored[0], "height": stored[1]}
    space, transfer, primaries = int(frame.colorspace), int(frame.color_trc), int(frame.color_primaries)
    if space not in _MATRICES:
        near, name = (_BT2020, "BT.2020") if space == _BT2020_CONSTANT else (_BT709, "BT.709")
        warn_once(f"color matrix {space} of H.273 is not known here: colors are taken as {name}")
        frame.colorspace = space = near
    if primaries not in _NEAR_PRIMARIES:
        warn_once(f"color primaries {primaries} of H.273 are not converted: colors are taken as BT.709")
    if transfer in _FAR_TRANSFERS:
        warn_once(f"transfer function {transfer} of H.273 is not converted: brightness is taken as BT.709")
    is_hd = frame.width >= _HD_WIDTH or frame.height >= _HD_HEIGHT
    if space == _UNSPECIFIED and primaries != _BT2020 and is_hd and not frame.format.is_rgb:
        frame.colorspace = _BT709
    wide = primaries == _BT2020 or (space == _BT2020 and primaries == _UNSPECIFIED)
    if transfer in (_PQ, _HLG) or wide:
        if space == _UNSPECIFIED and not frame.format.is_rgb:
            frame.colorspace = _BT2020
        deep = frame.reformat(format="rgb48le", **size).to_ndarray()
        return orientation.apply(_to_bt709(deep, transfer, wide))
    if size:
        frame = frame.reformat(format="rgb24", **size)
    return orientation.apply(frame.to_ndarray(format="rgb24"))


def _to_bt709(rgb: np.ndarray, transfer: int, wide: bool) -> np.ndarray:
    """Return uint8 BT.709 RGB of 16-bit RGB [H,W,3] under PQ, HLG or an SDR curve; `wide`: of BT.2020 primaries."""
    linear = _linear(transfer)[rgb]  # float32 [H,W,3], 1 is white
    if transfer == _HLG:
        luma = cv2.transform(linear, _BT2020_LUMA)
        linear *= np.power(np.maximum(luma, 1e-6), _HLG_GAMMA - 1)[..., None] * np.float32(_PEAK_NITS / _WHITE_NITS)
    if wide:
        linear = cv2.transform(linear, _BT2020_TO_BT709)
    hdr = transfer in (_PQ, _HLG)
    peak = _PEAK_NITS / _WHITE_NITS if hdr else 1.0
    levels = np.clip(linear * np.float32((_LEVELS - 1) / peak) + 0.5, 0, _LEVELS - 1)
    return _displayed(hdr)[levels.astype(np.uint16)]


@lru_cache
def _linear(transfer: int) -> np.ndarray:
    """Linear light of every 16-bit code, float32 [65536]: display light over white (PQ), scene light in [0, 1] else."""
    code = np.arange(_LEVELS) / (_LEVELS - 1)
    if transfer == _PQ:  # BT.2100-2, table 4
        root = code ** (32 / 2523)
        light = (np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)) ** (16384 / 2610)
        return (light * (10_000 / _WHITE_NITS)).astype(np.float32)
    if transfer == _HLG:  # BT.2100-2, table 5
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)
    return np.where(code < 4.5 * 0.018, code / 4.5, ((code + 0.099) / 1.099) ** (1 / 0.45)).astype(np.float32)


@lru_cache
def _displayed(hdr: bool) -> np.ndarray:
    """8-bit value of every linear level, uint8 [65536]: sRGB for HDR in [0, peak], the BT.709 curve in [0, 1] else."""
    light = np.arange(_LEVELS) / (_LEVELS - 1)
    if not hdr:  # the curve that it came with: grays stay
        code = np.where(light < 0.018, 4.5 * light, 1.099 * light**0.45 - 0.099)
        return np.round(255 * code).astype(np.uint8)
    light = _rolled_off(light * (_PEAK_NITS / _WHITE_NITS))
    code = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    return np.round(255 * code).astype(np.uint8)


def _rolled_off(light: np.ndarray) -> np.ndarray:
    """Bring [0, peak] to [0, 1]: nothing changes below the knee, above it Reinhard et al. (2002), equation 4."""
    above = np.maximum(light - _KNEE, 0) / (1 - _KNEE)
    peak = (_PEAK_NITS / _WHITE_NITS - _KNEE) / (1 - _KNEE)
    return np.minimum(light, _KNEE) + (1 - _KNEE) * above * (1 + above / peak**2) / (1 + above)
