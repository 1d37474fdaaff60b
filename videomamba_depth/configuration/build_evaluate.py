"""Build what evaluation needs from the values of its config."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from videomamba_depth.configuration.build import build_flow_estimator, build_teacher, flow_key
from videomamba_depth.configuration.evaluate_schema import EvaluateConfig, name_checkpoints, name_predictions
from videomamba_depth.data.recorded_depth import RecordedDepth, find_mixed_up
from videomamba_depth.data.video.find import VideoSource, find_sources, hash_source
from videomamba_depth.data.video.reader import iter_frames, probe_video
from videomamba_depth.evaluation.cache import digest
from videomamba_depth.evaluation.check import NUM_CLIPS, NUM_FRAMES, check_methods
from videomamba_depth.evaluation.clips import ClipSource, EvaluationClip
from videomamba_depth.evaluation.code_digest import code_digest
from videomamba_depth.evaluation.datasets.layout_tree import Found
from videomamba_depth.evaluation.datasets.layouts import find_layout
from videomamba_depth.evaluation.datasets.rgbd import find_sequences, folder_recording
from videomamba_depth.evaluation.encoded_frames import EncodedFrames
from videomamba_depth.evaluation.engine import ClipResult, Evaluator, Protocol
from videomamba_depth.evaluation.methods import (
    FEATURE_AVERAGE,
    TEACHER,
    UNTRAINED_SUFFIX,
    Method,
    all_filters,
    filter_methods,
)
from videomamba_depth.evaluation.model_methods import feature_average_method, student_method, teacher_method
from videomamba_depth.evaluation.predictions import Prediction, prediction_method
from videomamba_depth.evaluation.protocols import PROTOCOLS, Chosen, NoSuchList, choose
from videomamba_depth.evaluation.targets import target_methods
from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.models.checkpoint import TEACHER_PREFIX, load_student, load_teacher, student_weights
from videomamba_depth.models.encoder_da import Teacher
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.utils.checkpoint import hash_tensors
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.device import resolve_device, resolve_dtype, use_threads
from videomamba_depth.utils.environment import launch
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

Sources = Callable[[EvaluateConfig, str, FlowEstimator], list[ClipSource]]


_ADDED = {
    "geometry": partial(load_student, geometry=True),
    "plain_geometry": partial(load_student, geometry=True, trust=False),
    "affine": partial(load_student, affine=True),
}
"""What students may be scored with, too, by its key."""


@dataclass(frozen=True)
class Evaluation:
    """Clips, what scores them, and what is said about both in the report.

    drawn: names of the clips that pictures are made of.
    """

    evaluator: Evaluator
    sources: Sequence[ClipSource]
    drawn: frozenset[str]
    metadata: dict[str, Any]


def build_evaluation(config: EvaluateConfig) -> Evaluation:
    """Load teacher and students, and list methods and clips.

    Raises:
        UserError: a checkpoint or the input is wrong.
    """
    use_threads(config.threads)
    device = _device_of_rank(config.device)
    dtype = resolve_dtype(config.precision, device)
    flow, flow_name = build_flow_estimator(config.reference_flow, device), flow_key(config.reference_flow)
    sources = build_sources(config, flow)
    predictions = find_predictions(config, sources)
    checkpoints = name_checkpoints(config.checkpoint)
    if config.checkpoint is None and not predictions:
        raise UserError("config: no value for checkpoint; set it on the command line: checkpoint=... or prediction=...")
    teacher, students = None, dict[str, VideoMambaDepth]()
    if checkpoints:
        teacher, students = load_students(checkpoints, config.short_side)
        as_trained = dict(checkpoints)
        for added, load in _ADDED.items():
            if getattr(config, added):
                extended = {f"{name}+{added}": path for name, path in as_trained.items()}
                students |= {name: load(path, config.short_side) for name, path in extended.items()}
                checkpoints |= extended
        if config.untrained:
            students |= load_untrained(checkpoints, students, config.short_side)
            checkpoints |= {name: checkpoints[name.removesuffix(UNTRAINED_SUFFIX)] for name in students}
    elif config.checkpoint is not None:
        teacher = build_teacher(config.teacher, device, config.short_side)
    for model in (teacher, *students.values()):
        if model is not None:
            model.to(device)
    recorded = [prediction_method(prediction, first.kind) for prediction, first in predictions]
    targets = target_methods(flow) if config.targets else []
    filters = filter_methods() if config.baselines else []
    if teacher is None:
        if config.jitter:
            raise UserError(
                "jitter is that of a live teacher, recorded depth has none: name a checkpoint, or leave it out"
            )
        reference = replace(recorded.pop(0), trained=False)
        methods = [reference, *filters, *targets, *recorded]
    else:
        encoded, jittering = EncodedFrames(teacher), config.jitter.of_method
        average = partial(feature_average_method, teacher, flow, flow_name, device, dtype, encoded)
        of_student = {
            name: encoded if isinstance(model.encoder, Teacher) else EncodedFrames(model.encoder)
            for name, model in students.items()
        }
        methods = [
            jittering(teacher_method(teacher, device, dtype, encoded), teacher.head),
            *filters,
            *([jittering(average(), teacher.head)] if config.baselines and teacher.encodes else []),
            *targets,
            *(
                replace(
                    jittering(
                        student_method(name, checkpoints[name], model, memory, device, dtype, of_student[name], every),
                        model.head,
                    ),
                    trained=not name.endswith(UNTRAINED_SUFFIX),
                )
                for name, model in students.items()
                for memory in config.memory
                for every in config.encode_every
            ),
            *recorded,
        ]
    if config.reference is not None:
        methods = held_against(config.reference, methods, None if teacher is None else teacher.depth_kind)
    names = [method.name for method in methods]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"checkpoint, memory, encode_every, prediction: two methods are called '{twice[0]}'; write NAME:FOLDER with"
            " a name that no other method has, memories that differ in their first six digits, and every k once"
        )
    # Not every teacher encodes.
    missing = {FEATURE_AVERAGE, *([] if config.baselines else all_filters())} - {*names}
    shown = [names[0] if name == TEACHER else name for name in config.html.methods if name not in missing]
    unknown = [name for name in shown if name not in names]
    if unknown:
        raise UserError(f"html.methods: there is no method '{unknown[0]}'; choose from {', '.join(names)}")
    if config.against not in (None, *names):
        raise UserError(f"against: there is no method '{config.against}'; choose from {', '.join(names)}")
    protocol = Protocol(**{item.name: getattr(config, item.name) for item in fields(Protocol)})
    if protocol.alignment is None and config.protocol is not None:
        protocol = replace(protocol, alignment=PROTOCOLS[config.protocol].alignment)
    evaluator = Evaluator(
        methods=methods,
        depth_kind=methods[0].kind or _kind_of(teacher),
        flow=flow,
        flow_name=flow_name,
        protocol=protocol,
        cache=None if config.cache is None else Path(config.cache),
        shown=[*shown, *(method.name for method in methods if method.trained)],
        video_frames=config.html.video_frames,
        against=config.against,
    )
    inputs = [config.input] if isinstance(config.input, str) else config.input
    metadata = {
        "checkpoints": checkpoints,
        "weights_sha256": {n: hash_tensors(student_weights(m).items()) for n, m in students.items()},
        "teacher": None if teacher is None else teacher.model_id,
        "teacher_sha256": None if teacher is None else teacher.weights_sha256(),
        "predictions": {
            prediction.name: {"path": str(prediction.root), "kind": first.kind.value, "scale": first.scale}
            for prediction, first in predictions
        }
        or None,
        "jitter": asdict(config.jitter) if config.jitter else None,
        "input": config.input,
        "published_protocol": config.protocol,
        "precision": str(dtype).removeprefix("torch."),
        "device": str(device),
        "synthetic": asdict(config.synthetic) if "synthetic" in inputs else None,
    }
    return Evaluation(evaluator, sources, _drawn(config, sources), metadata)


def held_against(reference: str, methods: Sequence[Method], model_kind: DepthKind | None) -> list[Method]:
    """Return the methods with recorded depth first, in the place of the live teacher, which goes.

    reference: name of a prediction. model_kind: of the depth of students and their features; None without any.

    Raises:
        UserError: there is no such prediction.
    """
    found = next((method for method in methods if method.on_clip is not None and method.name == reference), None)
    if found is None:
        raise UserError(f"reference={reference} is no prediction; give its folder: prediction={reference}:FOLDER")
    rest = [method for method in methods if method is not found and method.name != TEACHER]
    # What derives from the reference has its kind, a model's depth keeps its own.
    return [
        replace(found, trained=False),
        *(replace(m, kind=m.kind or model_kind) if m.new_stream else m for m in rest),
    ]


def _kind_of(teacher: Teacher | None) -> DepthKind:
    assert teacher is not None  # or the first method is recorded and names its kind
    return teacher.depth_kind


def build_check(config: EvaluateConfig) -> tuple[Sequence[ClipSource], Sequence[Prediction], Evaluator]:
    """Return the first clips, the predictions, and what scores the ground truth and what is made of it beside them.

    Raises:
        UserError: the input or a prediction is wrong.
    """
    if config.threads is not None:
        use_threads(config.threads)
    flow = build_flow_estimator(config.reference_flow, resolve_device(config.device))
    sources = build_sources(config, flow)
    found = find_predictions(config, sources)
    methods = [*check_methods(), *(prediction_method(prediction, first.kind) for prediction, first in found)]
    protocol = Protocol(max_side=config.max_side, max_gt_side=config.max_gt_side, max_frames=NUM_FRAMES)
    return (
        sources[:NUM_CLIPS],
        [prediction for prediction, _ in found],
        Evaluator(methods, DepthKind.METRIC, flow, protocol=protocol),
    )


def find_predictions(config: EvaluateConfig, sources: Sequence[ClipSource]) -> list[tuple[Prediction, RecordedDepth]]:
    """Return the recorded depth of all clips, and that of the first.

    Raises:
        UserError: a clip has none, or that of another; it does not say what it is.
    """
    alone = len(sources) == 1
    videos = {source.name: source.path for source in sources if source.path is not None}
    given = name_predictions(config.prediction, config.prediction_kind, config.prediction_scale, alone)
    found = []
    lists = {source.name: f"@{source.frame_list}" if source.frame_list else "" for source in sources}
    scenes = {name: name.removesuffix(frame_list) for name, frame_list in lists.items()}
    for prediction in (replace(one, videos=videos, scenes=scenes) for one in given):
        missing, recordings = [], {}
        for source in sources:
            try:
                recordings[prediction.scene_of(source.name)] = prediction.find(source.name)
            except UserError as error:
                missing.append(str(error))
        if missing:
            raise UserError(
                f"prediction '{prediction.name}' lacks {len(missing)} of {len(sources)} clips: {missing[0]}"
            )
        if mixed_up := find_mixed_up(recordings, videos):
            raise UserError(f"prediction '{prediction.name}': {next(iter(mixed_up.values()))}")
        found.append((prediction, prediction.open(sources[0].name)))
    return found


def _device_of_rank(name: str) -> torch.device:
    """Return the device of that name; of several processes of torchrun, each takes another GPU."""
    shared = launch()
    if shared.world_size > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{shared.local_rank % torch.cuda.device_count()}"
    return resolve_device(name)


def _drawn(config: EvaluateConfig, sources: Sequence[ClipSource]) -> frozenset[str]:
    groups: dict[str, list[str]] = {}
    for source in sources if config.html.enabled else []:
        groups.setdefault(source.group, []).append(source.name)
    return frozenset(name for names in groups.values() for name in names[: config.html.clips])


def build_sources(config: EvaluateConfig, flow: FlowEstimator) -> list[ClipSource]:
    """Return the clips of all inputs: worlds, sequences of data sets, or every video at or below one.

    Of several inputs each is a group of its own, where a protocol or the kinds of worlds make none.
    """
    if isinstance(config.input, str):
        sources = _sources(config, config.input, flow)
    else:
        of_input, lacking = list[tuple[str, ClipSource]](), list[NoSuchList]()
        for place, called in _names_of_inputs(config.input).items():
            try:
                inside = _sources(config, place, flow)
            except NoSuchList as error:
                lacking.append(error)
                log.warning("'%s' is left out: %s", place, error)
                continue
            of_input += [(called, replace(one, group=one.group or called)) for one in inside]
        if lacking and not of_input:
            raise lacking[0]
        alike = Counter((one.group, one.name) for _, one in of_input)
        sources = [
            one if alike[one.group, one.name] == 1 else replace(one, name=f"{called}: {one.name}")
            for called, one in of_input
        ]
    if not config.input:
        raise UserError("input=[] names nothing to evaluate")
    if not sources:
        raise UserError(f"nothing to evaluate: synthetic.kinds={list(config.synthetic.kinds)} has no videos")
    count = Counter(source.name for source in sources)
    named = [
        source if count[source.name] == 1 else replace(source, name=f"{source.group}: {source.name}".removeprefix(": "))
        for source in sources
    ]
    name, times = Counter(source.name for source in named).most_common(1)[0]
    if times > 1:
        raise UserError(f"input: {times} sequences are called '{name}'; move or rename one, results go by these names")
    return named


def _names_of_inputs(places: Sequence[str]) -> dict[str, str]:
    """Return {input: what it is called}: the last part of its path, and as many before it as tell it from the others.

    Raises:
        UserError: one is named twice.
    """
    real = [place if place == "synthetic" else str(Path(place).resolve()) for place in places]
    if twice := [place for place, one in zip(places, real, strict=True) if real.count(one) > 1]:
        raise UserError(f"input names '{twice[0]}' twice; name each once")
    parts = [(place,) if place == "synthetic" else Path(os.path.abspath(place)).parts for place in places]
    names = {}
    for place, own in zip(places, parts, strict=True):
        length = 1
        while sum(own[-length:] == other[-length:] for other in parts) > 1:
            length += 1
        names[place] = "/".join(own[-length:])
    return names


def _sources(config: EvaluateConfig, place: str, flow: FlowEstimator) -> list[ClipSource]:
    if config.protocol is not None and place == "synthetic":
        raise UserError(f"protocol={config.protocol} is of a data set: set input= to its folder")
    return next(listed for applies, listed in CLIP_SOURCES if applies(config, place))(config, place, flow)


def _worlds(config: EvaluateConfig, place: str, flow: FlowEstimator) -> list[ClipSource]:
    cache = None if config.cache is None else Path(config.cache)
    return config.synthetic.sources(cache, flow, flow_key(config.reference_flow))


def _videos(config: EvaluateConfig, place: str, flow: FlowEstimator) -> list[ClipSource]:
    code = code_digest(iter_frames.__module__)
    found = find_sources(place)
    with_depth = [s.path for s in found if Path(s.path).is_dir() and (Path(s.path).resolve().parent / "depth").is_dir()]
    if with_depth:
        log.warning(
            "%d image folders are read as plain videos, without the folder depth/ beside them, first '%s': for folders"
            " rgb/ and depth/ set rgbd.depth_scale=UNITS_PER_METER",
            len(with_depth), with_depth[0],
        )  # fmt: skip
    return [
        ClipSource(s.video_id, partial(open_video, s), digest=partial(_content, s.path, code), path=s.path)
        for s in found
    ]


def _content(path: str, code: str) -> str:
    return digest(hash_source(path), code)


def open_video(source: VideoSource) -> EvaluationClip:
    """Open a video; its frames are decoded as they are asked for."""
    info = probe_video(source.path)
    frames = (frame.rgb for frame in iter_frames(source.path))
    times = info.own_times_s
    return EvaluationClip(
        source.video_id,
        frames,
        fps=info.fps,
        source_frames=info.num_frames,
        times_s=None if times is None else tuple(times.tolist()),
    )


def _rgbd_or_videos(config: EvaluateConfig, place: str, flow: FlowEstimator) -> list[ClipSource]:
    given = config.rgbd
    keys = [item.name for item in fields(given) if getattr(given, item.name) is not None]
    found = find_layout(place, given.layout, given.depth_root) if keys or Path(place).exists() else []
    if not found and given.depth_scale is not None and given.depth_root is None:
        found = [
            Found(folder.resolve().name if folder.name == "" else folder.name, partial(folder_recording, folder))
            for folder in find_sequences(place)
        ]
    if found:
        return _recordings(config, found)
    if config.protocol is not None:
        raise UserError(f"protocol={config.protocol} needs a data set with depth; '{place}' holds none")
    if keys:
        raise UserError(
            f"'{place}' is recognized as no data set with depth, which rgbd.{keys[0]} is of: name its layout"
            " (rgbd.layout=…), give rgbd.depth_scale for folders rgb/ and depth/, or leave out the keys of rgbd"
        )
    return _videos(config, place, flow)


def _recordings(config: EvaluateConfig, found: Sequence[Found]) -> list[ClipSource]:
    stills = config.protocol is not None and PROTOCOLS[config.protocol].stills
    return [
        ClipSource(
            one.name,
            partial(_open_recording, config, one),
            one.group,
            partial(_content_of_recording, config, one),
            stills=stills,
            protocol=config.protocol,
            frame_list=one.frames.name if one.name != one.found.name else None,
        )
        for one in choose(config.protocol, found, config.rgbd.scenes, config.rgbd.lists)
    ]


def _open_recording(config: EvaluateConfig, chosen: Chosen) -> EvaluationClip:
    pick = chosen.frames.pick(chosen.found.name, config.max_frames)
    with _named(chosen):
        return config.rgbd.clip(chosen.name, chosen.rules.applied(chosen.found.open()), pick)


@contextmanager
def _named(chosen: Chosen) -> Iterator[None]:
    """Name the sequence in what is wrong with it."""
    try:
        yield
    except UserError as error:
        if chosen.found.name in str(error):
            raise
        raise UserError(f"{chosen.name}: {error}") from error


def _content_of_recording(config: EvaluateConfig, chosen: Chosen) -> str:
    pick = chosen.frames.pick(chosen.found.name, config.max_frames)
    with _named(chosen):
        content = config.rgbd.content(chosen.rules.applied(chosen.found.open()), pick)
    return digest(content, chosen.found.name, config.protocol, code_digest(find_layout.__module__, choose.__module__))


CLIP_SOURCES: tuple[tuple[Callable[[EvaluateConfig, str], bool], Sources], ...] = (
    (lambda config, place: place == "synthetic", _worlds),
    (lambda config, place: True, _rgbd_or_videos),
)
"""Kinds of input: when each applies, the first that does, and the function that lists its clips."""


def load_students(checkpoints: dict[str, str], short_side: int | None) -> tuple[Teacher, dict[str, VideoMambaDepth]]:
    """Load students by name, and the one teacher that all of them are held against.

    Raises:
        UserError: students of different teachers or input sizes.
    """
    students = {name: load_student(path, short_side) for name, path in checkpoints.items()}
    teachers = [
        own if isinstance(own := student.encoder, Teacher) else load_teacher(checkpoints[name], short_side)
        for name, student in students.items()
    ]
    if len({(teacher.weights_sha256(), teacher.short_side) for teacher in teachers}) > 1:
        raise UserError("the students have different teachers or input sizes; evaluate them one by one")
    return teachers[0], students


def load_untrained(
    checkpoints: dict[str, str], students: dict[str, VideoMambaDepth], short_side: int | None
) -> dict[str, VideoMambaDepth]:
    """Return the students as they were before training, by NAME+untrained; those whose encoder learned are left out."""
    frozen = {name: model for name, model in students.items() if model.encoder.frozen}
    return {
        f"{name}{UNTRAINED_SUFFIX}": load_student(
            checkpoints[name],
            short_side,
            geometry=model.geometry is not None,
            affine=model.output is not None and model.output.affine > 0,
            untrained=True,
        )
        for name, model in frozen.items()
        if not checkpoints[name].startswith(TEACHER_PREFIX)
    }


_of_worker: list[Evaluation] = []


def start_worker(config: EvaluateConfig) -> None:
    """Build the evaluation of a worker process, once."""
    _of_worker[:] = [build_evaluation(config)]


def evaluate_in_worker(number: int) -> ClipResult | UserError:
    """Evaluate one of the clips in a worker process, see `Evaluator.attempt`."""
    evaluation = _of_worker[0]
    source = evaluation.sources[number]
    return evaluation.evaluator.attempt(source, draw=source.name in evaluation.drawn)
