"""Selective state-space scan for very many short sequences, with carried state and selectable
discretization."""

from selective_scan.contract import ScanOutput
from selective_scan.discretization import DISCRETIZATIONS, Discretization
from selective_scan.interface import (
    causal_conv1d,
    causal_conv1d_step,
    selective_scan,
    selective_scan_step,
)
from selective_scan.memory import zero_state
from selective_scan.reference import causal_conv1d_ref, selective_scan_ref
from selective_scan.state import pack_state, state_dtype, state_shape, unpack_state

__all__ = [
    "DISCRETIZATIONS",
    "Discretization",
    "ScanOutput",
    "causal_conv1d",
    "causal_conv1d_ref",
    "causal_conv1d_step",
    "pack_state",
    "selective_scan",
    "selective_scan_ref",
    "selective_scan_step",
    "state_dtype",
    "state_shape",
    "unpack_state",
    "zero_state",
]
