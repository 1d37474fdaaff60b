"""Build what gives a stream's frames their depth, from the values of its config."""

from __future__ import annotations

from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.data.labels.windowed_target import WindowedTarget
from videomamba_depth.flow.estimators import build_flow
from videomamba_depth.streaming.key_frames.key_frames import KeyFrames
from videomamba_depth.streaming.offline import OfflineDepth, teacher_of
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.errors import UserError


def build_stream(config: StreamConfig) -> DepthStream | OfflineDepth:
    """Load the checkpoint and open a stream of it, or, with `offline`, of its teacher's targets.

    Raises:
        UserError: there is no such checkpoint or device, or it cannot do what is asked for.
    """
    if config.offline:
        teacher = teacher_of(config.checkpoint, config.short_side)
        return OfflineDepth(
            teacher,
            WindowedTarget(
                build_flow("dis"),
                teacher.depth_kind,
                geometry=config.geometry is not False,
                cuts=config.reset_at_cuts,
            ),
            device=config.device,
            precision=config.precision,
            resolution=config.resolution,
            max_gap_s=config.max_gap_s,
        )
    stream = DepthStream(
        config.checkpoint,
        device=config.device,
        precision=config.precision,
        short_side=config.short_side,
        resolution=config.resolution,
        resets=ResetPolicy(cuts=config.reset_at_cuts, max_gap_s=config.max_gap_s),
        hooks=[KeyFrames(config.key_frames)] if config.key_frames.enabled else [],
        memory=config.memory,
        geometry=config.geometry,
        affine=config.affine,
        encode_every=config.encode_every,
        compile=config.compile,
    )
    if config.poses and stream.model.geometry is None:
        raise UserError(f"poses=true: '{config.checkpoint}' does not follow its camera; set geometry=true too")
    return stream
