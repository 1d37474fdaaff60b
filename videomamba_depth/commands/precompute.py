"""Label a folder of videos once, so that training need not run the teacher.

    videomamba-depth precompute root=videos cache=cache                      # the embedded teacher
    videomamba-depth precompute teacher=depth_anything_v2 root=videos cache=cache batch_frames=8
    videomamba-depth precompute root=videos cache=cache labels=labels        # of another program (data.labels)
    videomamba-depth precompute root=videos cache=cache verify=true          # only read it all again

Run it again to continue; run it under torchrun to share the videos among processes. Training reads the cache with
data.teacher_cache=cache.
"""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from datetime import timedelta

from torch import Tensor

from videomamba_depth.configuration.build import (
    build_flow_estimator,
    build_teacher,
    label_key,
    stabilize_key,
    static_key,
)
from videomamba_depth.configuration.cli import hydra_entry
from videomamba_depth.configuration.schema import PrecomputeConfig
from videomamba_depth.data.labels.cache_server import has_content, local_root
from videomamba_depth.data.labels.cache_verify import VerifyReport, verify_cache
from videomamba_depth.data.labels.label_folder import LabelFolder
from videomamba_depth.data.labels.precompute import PrecomputeSummary, precompute_videos
from videomamba_depth.data.labels.stabilized_cache import precompute_stabilized
from videomamba_depth.data.labels.teacher_cache import TeacherKey
from videomamba_depth.data.video.find import VideoSource, find_sources, is_list
from videomamba_depth.training.distributed import Ranks, start_ranks, stop_ranks
from videomamba_depth.utils.device import use_threads
from videomamba_depth.utils.errors import UserError, building
from videomamba_depth.utils.lock import exclusive

log = logging.getLogger(__name__)


def main(config: PrecomputeConfig) -> None:
    """Fill, or verify, the cache that `config` describes."""
    use_threads(config.threads)
    folder = local_root(config.cache)
    if folder is None:
        with building("cache"):
            has_content(config.cache)
    videos = find_sources(config.root)
    ranks = start_ranks(config.device, patience=timedelta(days=30))
    held = ExitStack()
    try:
        with ranks.together():
            if ranks.is_main and not config.verify and folder is not None:  # one lock for all ranks
                held.enter_context(exclusive(folder / ".lock", f"teacher cache '{config.cache}'"))
        teacher = build_teacher(config.teacher, ranks.device)
        labels = None
        if config.labels is not None:
            labels = LabelFolder(config.labels, teacher.depth_kind, config.labels_kind, config.labels_scale)
        key = label_key(teacher, labels, config.short_side)
        if config.verify:
            verify(config, key, videos, ranks)
            return

        def predict_depth(rgb: Tensor) -> Tensor:
            return teacher.predict_labels(rgb.to(ranks.device)).float()

        summary = precompute_videos(
            videos,
            predict_depth,
            key,
            config.cache,
            batch_frames=config.batch_frames,
            image_size=config.crop or config.short_side,
            rank=ranks.rank,
            world_size=ranks.world_size,
            flow=build_flow_estimator(config.reference_flow, ranks.device) if config.store_flow else None,
            labels=labels,
            scan=not is_list(config.root),
            progress=ranks.is_main,
            masks=teacher.masks or labels is not None,
            static=static_key(config.reference_flow),
        )
        if config.stabilize:
            flow = build_flow_estimator(config.reference_flow, ranks.device)
            stabilized = stabilize_key(config, config.reference_flow)
            mine = [video for i, video in enumerate(videos) if i % ranks.world_size == ranks.rank]
            static = static_key(config.reference_flow)
            frames = precompute_stabilized(
                mine, config.cache, key, stabilized, flow, static=static, progress=ranks.is_main
            )
            log.info("%d frames given %s targets", sum(ranks.gather(frames)), config.target)
        summary = PrecomputeSummary.merged(ranks.gather(summary))
    finally:
        held.close()
        stop_ranks()
    log.info(
        "%d videos labelled, %d were already, %d frames, %d failed",
        summary.finished, summary.already_finished, summary.frames, len(summary.failed),
    )  # fmt: skip
    if summary.failed and ranks.is_main:
        sys.exit(1)


def verify(config: PrecomputeConfig, key: TeacherKey, videos: list[VideoSource], ranks: Ranks) -> None:
    """Read every chunk again, shared among the ranks; the main one names what does not fit."""
    part = verify_cache(config.cache, key=key, sources=videos, rank=ranks.rank, world_size=ranks.world_size)
    report = VerifyReport.merged(ranks.gather(part))
    if not ranks.is_main:
        return
    for problem in report.problems:
        log.error("%s", problem)
    for video_id in report.unfinished:
        log.warning("%s: unfinished", video_id)
    log.info("%d videos and %d frames are whole", report.videos, report.frames)
    if not report.ok or report.unfinished:
        raise UserError(
            f"the cache '{config.cache}' has {len(report.problems)} faults and {len(report.unfinished)} unfinished"
            " videos, see above; run again without verify=true to finish it, delete the faulty groups to make them anew"
        )


def run() -> None:
    """Run the command line."""
    hydra_entry("precompute", PrecomputeConfig, main)


if __name__ == "__main__":
    run()
