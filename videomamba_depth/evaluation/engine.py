"""Run methods over clips and score them all the same way.

A clip is read once; what is read again lies in temporary files, so that memory does not grow with a clip: per pixel
and frame at the evaluation size 21 bytes of color, flow and masks and 4 for each method under work, so 300 frames
of 384×216 px take about 0.9 GB of disk. An iterator of frames is kept, 3 bytes per pixel at its own size, where a
clip is to be run backwards too. With a cache, results are kept per clip and method, and only what is missing is
run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videomamba_depth.data.video.find import summarize
from videomamba_depth.evaluation.cache import digest, keep_result, kept_arrays, read_arrays, read_result, read_scores
from videomamba_depth.evaluation.clips import ClipSource, EvaluationClip, shrink_clip
from videomamba_depth.evaluation.code_digest import code_digest
from videomamba_depth.evaluation.context import (
    Context,
    Progress,
    build_context,
    frames_in_any_order,
    run_streams,
)
from videomamba_depth.evaluation.methods import Method, is_average
from videomamba_depth.evaluation.metrics.registry import depth_flags, score_depth
from videomamba_depth.evaluation.pictures import ClipPictures, draw_clip
from videomamba_depth.evaluation.recurrence import Stream, keep_first, recurrence_scores
from videomamba_depth.evaluation.summary import summarize_clips
from videomamba_depth.flow.clip_motion import no_motion
from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.flow.frame_view import Frames, FrameView, on_disk
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError, is_disk_full
from videomamba_depth.utils.settings import choice, ranged

log = logging.getLogger(__name__)

ClipResult = dict[str, Any]
"""What `Evaluator.evaluate` returns."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What numbers depend on besides clip and method.

    max_side: longer side of evaluation in px where there is no ground truth; with one, its size is used.
    max_gt_side: larger ground truth is brought to this longer side first (`shrink_clip`); published numbers use
    None. max_frames: of each clip. alignment: one scale and shift for a clip, fitted to the ground truth of the whole
    "video" (None too) or of its "first_frame"; accuracy is reported under both. palindrome: also run trained methods
    over each clip forward and back. cut_frames: also run them across a cut within each clip, see
    `settle_after_own_cut`; 0: not.
    """

    max_side: int = ranged(16, 8192, 384)
    max_gt_side: int | None = ranged(16, 8192, None)
    max_frames: int | None = ranged(1, 10**9, None)
    alignment: str | None = choice("video", "first_frame", default=None)
    palindrome: bool = False
    cut_frames: int = ranged(0, 10**6, 0)


@dataclass(frozen=True)
class Evaluator:
    """Scores methods on one clip after another.

    methods: the first is the framewise teacher, or what stands in its place: the reference of guards and filters.
    depth_kind: what it and all methods give that name no kind of their own. flow: estimates motion; may be None for
    clips that bring their own. Where both are, filters get the
    estimated flow, as a user's would, and the metrics the exact one. flow_name: names it in keys. cache: folder
    where results are kept. shown: methods in the pictures of a clip; video_frames: in their video, 0 for none.
    against: the method that the leaderboard holds the others against; None: the first.
    """

    methods: Sequence[Method]
    depth_kind: DepthKind
    flow: FlowEstimator | None = None
    flow_name: str = ""
    protocol: Protocol = field(default_factory=Protocol)
    cache: Path | None = None
    shown: Sequence[str] = ()
    video_frames: int = 96
    against: str | None = None

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        if not names or len(set(names)) < len(names) or self.methods[0].derive is not None or self.methods[0].trained:
            raise ValueError(
                f"methods must begin with 'teacher' or another reference, not trained, and differ in name; got {names}"
            )

    @property
    def reference(self) -> str:
        """Name of the method that all others are held against."""
        return self.methods[0].name

    @property
    def align_metric(self) -> bool:
        """Whether metric depth is aligned, since there are methods of other kinds too."""
        kinds = {method.kind or self.depth_kind for method in self.methods}
        return DepthKind.METRIC in kinds and len(kinds) > 1

    @torch.no_grad()
    def evaluate(
        self, clip: EvaluationClip | ClipSource, progress: Progress | None = None, draw: bool = False
    ) -> ClipResult:
        """Return the results of all methods on a clip, running those that are not kept.

        progress: see `Progress`. draw: also return pictures of the methods in `shown`.

        Returns:
            {"name", "group", "protocol", "stills", "num_frames", "frame_ids", "frames_digest", "size" [H,W], "fps",
            "coverage", "cuts", "alignment", "ground_truth", "exact_motion", "methods": {method: {metric: Score}},
            "flags": {method: [str]}, "pictures": `ClipPictures` or None}. Of stills there are the teacher, recorded
            depth and students, started again for every picture, with their accuracy alone.

        Raises:
            UserError: the clip has fewer than two frames, its parts do not fit together, or it cannot be read.
        """
        source = clip if isinstance(clip, ClipSource) else ClipSource(clip.name, lambda: clip)
        kept = _KeptClip(self, source)
        methods = [
            method for method in self.methods if method.trained or not (source.stills and is_average(method.name))
        ]
        results = {method.name: kept.result(method) for method in methods}
        missing = [method for method in methods if results[method.name] is None]
        shown = [m for m in methods if m.name in self.shown] if draw and not source.stills else []
        pictures = kept.pictures(shown) if shown else None
        if missing or (shown and pictures is None):
            drawn = shown if pictures is None else []
            found, new_pictures = _run_clip(self, source, kept, missing, drawn, progress)
            results |= found
            pictures = pictures or new_pictures
            if drawn and new_pictures is not None:
                kept.keep_pictures(drawn, new_pictures)
        done: Mapping[str, dict[str, Any]] = results  # type: ignore[assignment]
        return {
            "name": source.name,
            "group": source.group,
            "protocol": source.protocol,
            "stills": source.stills,
            **done[self.reference]["clip"],
            "methods": {name: result["scores"] for name, result in done.items()},
            "flags": {name: result["flags"] for name, result in done.items()},
            "pictures": pictures,
        }

    def attempt(
        self, clip: EvaluationClip | ClipSource, progress: Progress | None = None, draw: bool = False
    ) -> ClipResult | UserError:
        """Return what `evaluate` returns, or the error where the clip cannot be used; a full disk is raised."""
        try:
            return self.evaluate(clip, progress, draw)
        except UserError as error:
            if is_disk_full(error):
                raise
            return error


class _KeptClip:
    """What is kept of a clip on disk; nothing, and nothing is written, where clip or method have no digest."""

    def __init__(self, evaluator: Evaluator, source: ClipSource) -> None:
        self._keep_depth, self._folder = source.keep_depth, None
        self._teacher, self._name = "", source.name
        if evaluator.cache is not None and source.digest is not None:
            kind = evaluator.depth_kind.value + ("-aligned" if evaluator.align_metric else "")
            content = [source.digest(), source.stills]
            about = digest(content, asdict(evaluator.protocol), evaluator.flow_name, kind)
            self._folder = evaluator.cache / "results" / f"{_file_name(source.name)}-{about}"
            self._teacher = evaluator.methods[0].digest_of(source.name)
        self._video_frames = evaluator.video_frames

    def result(self, method: Method) -> dict[str, Any] | None:
        path = self._result_path(method)
        found = None if path is None else read_result(path)
        return None if found is None else {**found, "scores": read_scores(found["scores"])}

    def keep_result(self, method: Method, result: Mapping[str, Any]) -> None:
        if (path := self._result_path(method)) is not None:
            keep_result(path, result)

    def pictures(self, shown: Sequence[Method]) -> ClipPictures | None:
        path = self._pictures_path(shown)
        found = None if path is None else read_result(path)
        return None if found is None else ClipPictures.from_json(found)

    def keep_pictures(self, shown: Sequence[Method], pictures: ClipPictures) -> None:
        if (path := self._pictures_path(shown)) is not None:
            keep_result(path, asdict(pictures))

    def depth_folder(self, method: Method) -> Path | None:
        """Return where the depth of an untrained stream is kept."""
        if self._folder is None or not (self._keep_depth and method.digest and method.new_stream) or method.trained:
            return None
        return self._folder / f"{method.name}-{digest(method.digest, code_digest(run_streams.__module__))}"

    def _result_path(self, method: Method) -> Path | None:
        if self._folder is None or not (method.digest and self._teacher):
            return None
        code = code_digest(score_depth.__module__, build_context.__module__, recurrence_scores.__module__)
        return (
            self._folder / f"{_file_name(method.name)}-{digest(method.digest_of(self._name), self._teacher, code)}.json"
        )

    def _pictures_path(self, shown: Sequence[Method]) -> Path | None:
        if self._folder is None or not all(method.digest for method in shown):
            return None
        methods = [(method.name, method.digest_of(self._name)) for method in shown]
        key = digest(methods, self._teacher, self._video_frames, code_digest(draw_clip.__module__))
        return self._folder / f"pictures-{key}.json"


def _run_clip(
    evaluator: Evaluator,
    source: ClipSource,
    kept: _KeptClip,
    missing: Sequence[Method],
    drawn: Sequence[Method],
    progress: Progress | None,
) -> tuple[dict[str, Any], ClipPictures | None]:
    """Run methods over a clip; return the results of those missing, by name, and pictures of those drawn.

    A result is kept as soon as there is one.
    """
    protocol, clip, teacher = evaluator.protocol, source.load(), evaluator.methods[0]
    if protocol.max_gt_side is not None:
        clip = shrink_clip(clip, protocol.max_gt_side)
    if clip.source_frames is None and isinstance(clip.frames, Sized):
        clip = replace(clip, source_frames=len(clip.frames))
    frames: Sequence[np.ndarray] | FrameView = []
    if (protocol.palindrome or protocol.cut_frames) and not source.stills:
        frames = frames_in_any_order(clip.frames, protocol.max_frames)
        clip = replace(clip, frames=frames)
    methods = [m for m in evaluator.methods if m is teacher or m in missing or m in drawn]

    # 1. The depth of every stream, in one pass over the frames.
    streams, first = dict[str, Stream](), dict[str, list[np.ndarray]]()
    for method in methods:
        if method.derive is None:
            folder = kept.depth_folder(method)
            recorded = None if folder is None else read_arrays(folder)
            known = method if not recorded else Method.recorded(method.name, recorded["depth"])
            stream = known.open(source.stills, clip, protocol.max_frames)
            if method.trained and protocol.cut_frames and method.new_stream is not None:
                stream = keep_first(stream, protocol.cut_frames, first.setdefault(method.name, []))
            streams[method.name] = stream
    fewest = 1 if source.stills else 2
    rgb, depths = run_streams(clip, streams, protocol.max_side, protocol.max_frames, progress, fewest)
    for method in methods:
        if (folder := kept.depth_folder(method)) is not None and not folder.exists():
            kept_arrays(folder, lambda name=method.name: {"depth": depths[name][:]})  # type: ignore[misc]

    # 2. What it is scored against, then method after method.
    has_filters = any(method.derive is not None for method in methods)
    if source.stills:
        clip = replace(clip, motion=no_motion(rgb.shape[:3]))
    flow = None if source.stills else evaluator.flow
    reference = depths[evaluator.reference]
    context = build_context(clip, rgb, reference, evaluator.depth_kind, flow, has_filters, progress)
    context = replace(context, aligned_to=protocol.alignment or "video", align_metric=evaluator.align_metric)
    if source.stills:
        context = replace(context, stills=True, exact_motion=False)
    about, found = _describe(clip, context), dict[str, Any]()
    for method in methods:
        depth: Frames = (
            depths[method.name] if method.derive is None else on_disk([d] for d in method.derive(context))[0]
        )
        if method in drawn:
            depths[method.name] = depth
        if method in missing:
            scores = score_depth(depth, context.of_kind(method.kind))
            flags = [*depth_flags(depth), *getattr(streams.get(method.name), "flags", ())]
            found[method.name] = {"clip": about, "scores": scores, "flags": flags}
            if not method.trained:
                kept.keep_result(method, found[method.name])
        if progress is not None:
            progress("method", method.name)

    # 3. What students remember.
    for method in missing:
        if not method.trained:
            continue
        if method.new_stream is not None and not source.stills:
            found[method.name]["scores"] |= recurrence_scores(
                method.open, streams[method.name], frames, depths[method.name],
                protocol.palindrome, protocol.cut_frames, first.get(method.name),
            )  # fmt: skip
            for again in [*(["palindrome"] * protocol.palindrome), *(["cut"] * (protocol.cut_frames > 0))]:
                if progress is not None:
                    progress(again, method.name)
        kept.keep_result(method, found[method.name])
    pictures = (
        draw_clip(clip, context, {m.name: (depths[m.name], m.kind) for m in drawn}, evaluator.video_frames)
        if drawn
        else None
    )
    return found, pictures


def _describe(clip: EvaluationClip, context: Context) -> dict[str, Any]:
    num_frames = len(context.rgb)
    frame_ids = list(clip.frame_ids or range(num_frames))[:num_frames]
    return {
        "num_frames": num_frames,
        "frame_ids": frame_ids,
        "frames_digest": digest(frame_ids),
        "size": list(context.rgb.shape[1:3]),
        "fps": clip.fps,
        "coverage": context.motion.coverage,
        "cuts": list(context.motion.cuts),
        "alignment": context.alignment,
        "ground_truth": context.gt_depth_m is not None,
        "exact_motion": context.exact_motion,
    }


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.@=-]+", "_", name)


def evaluate_clips(
    clips: Iterable[EvaluationClip | ClipSource],
    evaluator: Evaluator,
    *,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    draw: bool = False,
    keep: Callable[[dict[str, Any]], None] | None = None,
    skip_unusable: bool = False,
) -> dict[str, Any]:
    """Score all methods on clips, one clip after another, and average; see `collect` for arguments and result."""
    outcomes = ((clip.name, evaluator.attempt(clip, progress, draw)) for clip in clips)
    return collect(outcomes, evaluator, metadata=metadata, keep=keep, skip_unusable=skip_unusable)


def collect(
    outcomes: Iterable[tuple[str, ClipResult | UserError]],
    evaluator: Evaluator,
    *,
    metadata: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
    skip_unusable: bool = False,
) -> dict[str, Any]:
    """Average the results of clips as they come.

    Args:
        outcomes: name and result of every clip, or why it cannot be used; see `Evaluator.attempt`.
        metadata: checkpoint path and hash, seed, command, …; copied into the result.
        keep: called after every clip with the result so far.
        skip_unusable: leave out the clips that cannot be used, and name them in the result.

    Returns:
        See `summarize_clips`.

    Raises:
        UserError: no clip; one that cannot be used, or with `skip_unusable` none that can.
    """
    skipped, results = dict[str, str](), list[ClipResult]()
    protocol = {
        "depth_kind": evaluator.depth_kind.value,
        "flow": "none" if evaluator.flow is None else type(evaluator.flow).__name__,
        **asdict(evaluator.protocol),
        "averaging": "pixels of a frame, then frames, then clips",
        "reference": evaluator.reference,
    }
    if others := {m.name: m.kind.value for m in evaluator.methods if m.kind not in (None, evaluator.depth_kind)}:
        protocol["other_depth_kinds"] = others
    students = [method.name for method in evaluator.methods if method.trained]
    for name, outcome in outcomes:
        if isinstance(outcome, UserError):
            if not skip_unusable:
                raise outcome
            skipped[name] = str(outcome)
            log.warning("%s is skipped: %s", name, outcome)
            continue
        results.append(outcome)
        log.info("evaluated %s: %d frames", name, outcome["num_frames"])
        if keep is not None:
            keep(summarize_clips(results, skipped, students, protocol, metadata, evaluator.against))
    if skipped and not results:
        raise UserError(f"none of {len(skipped)} clips can be evaluated: {summarize(skipped)}")
    if not results:
        raise UserError("there is nothing to evaluate: no clip was given")
    return summarize_clips(results, skipped, students, protocol, metadata, evaluator.against)
