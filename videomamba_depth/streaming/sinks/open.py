"""The sinks of a stream, from its settings. A new sink is a file here and an entry of `RAW_SINKS`, or of `SINKS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from videomamba_depth.streaming.depth_frame import DepthFrame
from videomamba_depth.streaming.pipeline import FileSink
from videomamba_depth.streaming.sinks.images import ExrSink, Png16Sink, require_exr
from videomamba_depth.streaming.sinks.npz import NpzSink
from videomamba_depth.streaming.sinks.point_cloud import Intrinsics, PointCloudSink
from videomamba_depth.streaming.sinks.poses import PoseLog
from videomamba_depth.streaming.sinks.video import FrameLog, FramePainter, VideoSink
from videomamba_depth.streaming.sinks.zarr_group import ZarrSink, require_zarr
from videomamba_depth.utils.color import ColorSettings, DepthColors
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.settings import Range, choice, path, ranged


@dataclass(frozen=True)
class Opening:
    """What sinks are opened with.

    Attributes:
        fps: of the source, on average.
        kind: of the depth; `max_depth_m`: its upper bound, of metric checkpoints.
        intrinsics: in px of the source's frames; None: no point clouds.
        clouds: frames from one point cloud to the next, or what chooses them.
    """

    settings: SinkSettings
    fps: float
    kind: DepthKind
    max_depth_m: float | None = None
    intrinsics: Intrinsics | None = None
    clouds: int | Callable[[DepthFrame], Sequence[DepthFrame]] = 30

    def painter(self) -> FramePainter:
        """Return what paints depth for one viewer."""
        return FramePainter(DepthColors(self.kind, self.settings.color), self.settings.video != "depth")


@dataclass(frozen=True)
class SinkEntry:
    """One kind of output.

    Attributes:
        suffix: of its file or folder, after the stream's name.
        open: called with its path by the first frame.
        wanted: whether settings ask for it.
        check: raises UserError where it cannot be written at all; called before anything is.
    """

    suffix: str
    open: Callable[[Path, Opening], FileSink]
    wanted: Callable[[SinkSettings], bool] = lambda settings: True
    check: Callable[[], None] = lambda: None


def exact_sink(folder: Path, kind: DepthKind) -> NpzSink:
    """Return the sink that keeps float32 depth to the bit, for depth that is read again."""
    return NpzSink(folder, kind, "float32")


RAW_SINKS = {
    "npz": SinkEntry("_depth", lambda p, o: NpzSink(p, o.kind, o.settings.raw_precision, o.settings.shard_frames)),
    "png16": SinkEntry("_depth", lambda p, o: Png16Sink(p, o.kind, o.max_depth_m)),
    "exr": SinkEntry("_depth", lambda p, o: ExrSink(p, o.kind, o.settings.raw_precision), check=require_exr),
    "zarr": SinkEntry("_depth.zarr", lambda p, o: ZarrSink(p, o.kind, o.settings.raw_precision), check=require_zarr),
}
"""What `raw` may be besides "none"."""


@dataclass(frozen=True, kw_only=True)
class SinkSettings:
    """What to write; see `configs/stream.yaml` for the keys' meanings."""

    output: str = path()
    video: str = choice("side_by_side", "depth", "none")
    video_codec: str = choice("h264", "hevc")
    raw: str = choice("none", *RAW_SINKS)
    raw_precision: str = choice("float16", "float32")
    shard_frames: int = ranged(1, 10**6)
    intrinsics: str | list[float] | None = path(None, numbers=Range(-1e9, 1e9, length=(4, 4)))
    ply_every: int = ranged(1, 10**9)
    color: ColorSettings
    poses: bool
    overwrite: bool

    def __post_init__(self) -> None:
        if self.poses and self.output == "-":
            raise ValueError("poses=true writes a file, which needs a folder: output=FOLDER, not output=-")
        if self.intrinsics is not None and self.output == "-":
            raise ValueError("intrinsics asks for point clouds, which need a folder: output=FOLDER, not output=-")


SINKS = (
    SinkEntry(
        ".mp4", lambda p, o: VideoSink(p, o.painter(), o.fps, o.settings.video_codec), lambda s: s.video != "none"
    ),
    SinkEntry(
        "_points",
        lambda p, o: PointCloudSink(p, o.kind, o.intrinsics, o.clouds),  # type: ignore[arg-type]
        lambda s: s.intrinsics is not None,
    ),
    SinkEntry(".poses.txt", lambda p, o: PoseLog(p), lambda s: s.poses),
    SinkEntry(".frames.jsonl", lambda p, o: FrameLog(p)),
)
"""Everything else that may be written, in the order in which it is named."""


def wanted_sinks(settings: SinkSettings) -> list[SinkEntry]:
    """Return the outputs that settings ask for, by files and folders.

    Raises:
        UserError: one of them cannot be written here.
    """
    wanted = [entry for entry in SINKS if entry.wanted(settings)]
    wanted += [] if settings.raw == "none" else [RAW_SINKS[settings.raw]]
    for entry in wanted:
        entry.check()
    return wanted
