"""Streaming, temporally stable video depth, distilled from a frozen Depth Anything teacher."""

__version__ = "0.1.0"
