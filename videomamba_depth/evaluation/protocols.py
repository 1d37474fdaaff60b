"""Published protocols: which frames of a data set count, how far, where in the picture, and how depth is aligned.

A protocol is an entry of `PROTOCOLS`: for each layout its frame lists, and what else of the layout it changes. Settings
that are given by hand take precedence. Sources: DepthCrafter's and Video Depth Anything's benchmark/ folders for `vda`;
Eigen et al., NIPS 2014, Garg et al., ECCV 2016 and the list of 697 pictures in monodepth2's splits/eigen for
`kitti_eigen`; the data set's own splits.mat for `nyu`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

from videomamba_depth.evaluation.datasets.layout_tree import Found
from videomamba_depth.evaluation.datasets.layouts import LAYOUTS
from videomamba_depth.evaluation.datasets.recording import FramePick, Recording
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

ALIGNED = {
    "video": "one scale and shift per video",
    "first_frame": "scale and shift of the first frame for all",
    "per_frame": "scale and shift for every picture",
}
NAMED = 5  # of the sequences that are missing


@dataclass(frozen=True)
class FrameList:
    """Frames of some sequences.

    name: within its protocol. scenes: patterns of sequences, none for all. listed_in: regular expression of the list
    that a sequence stands in (`Found`). first: so many sequences alone. start, stride, count: see `FramePick`. numbers:
    by sequence, the frames that count.
    """

    name: str = "all"
    scenes: tuple[str, ...] = ()
    listed_in: str = ".*"
    first: int | None = None
    start: int = 0
    count: int | None = None
    stride: int = 1
    numbers: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def pick(self, sequence: str, count: int | None = None) -> FramePick:
        """Return which frames of a sequence are taken; `count` in place of the list's own."""
        return FramePick(
            self.start,
            self.stride,
            count or self.count,
            self.numbers.get(sequence, frozenset()) if self.numbers else None,
        )

    def __str__(self) -> str:
        if self.numbers:
            return f"{sum(map(len, self.numbers.values()))} listed pictures"
        end = "" if self.count is None else f" to {self.start + self.stride * (self.count - 1)}"
        return f"frames from {self.start}{end}" + (f" in steps of {self.stride}" if self.stride > 1 else "")


@dataclass(frozen=True)
class Rules:
    """What a protocol asks for on one layout; max_depth_m, crop, region: as in `Recording`, None: the layout's."""

    lists: tuple[FrameList, ...] = (FrameList(),)
    max_depth_m: float | None = None
    crop: tuple[int, int, int, int] | None = None
    region: tuple[float, float, float, float] | None = None

    def applied(self, recording: Recording) -> Recording:
        """Return a recording that is read as these rules ask."""
        given = {"max_depth_m": self.max_depth_m, "crop": self.crop, "region": self.region}
        return replace(recording, **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]


@dataclass(frozen=True)
class PublishedProtocol:
    """layouts: what is asked for, by layout; others: on those that are not named, None where there is nothing.

    alignment: of `ALIGNED`; "per_frame" where the frames are single pictures.
    """

    title: str
    alignment: str
    layouts: Mapping[str, Rules]
    others: Rules | None = None

    @property
    def stills(self) -> bool:
        """Whether its frames are pictures that have nothing to do with each other."""
        return self.alignment == "per_frame"


def _frames(*spans: tuple[int, int, int], without: Iterable[int] = ()) -> frozenset[int]:
    """Return whole numbers of spans (first, last, step)."""
    return frozenset(n for first, last, step in spans for n in range(first, last + 1, step)) - frozenset(without)


KITTI_DRIVES = tuple(  # those of KITTI's annotated depth for validation
    f"{drive}_sync/image_02"
    for drive in (
        "2011_09_26_drive_0002", "2011_09_26_drive_0005", "2011_09_26_drive_0013", "2011_09_26_drive_0020",
        "2011_09_26_drive_0023", "2011_09_26_drive_0036", "2011_09_26_drive_0079", "2011_09_26_drive_0095",
        "2011_09_26_drive_0113", "2011_09_28_drive_0037", "2011_09_29_drive_0026", "2011_09_30_drive_0016",
        "2011_10_03_drive_0047",
    )
)  # fmt: skip
SCANNET_SCENES = tuple(f"scene{number:04d}_00" for number in range(707, 807))  # its test scenes
BONN_SEQUENCES = tuple(
    f"rgbd_bonn_{name}" for name in ("balloon2", "crowd2", "crowd3", "person_tracking", "synchronous")
)
NYU_SCENES = (
    "basement_0001a", "bookstore_0001a", "cafe_0001a", "classroom_0001a", "kitchen_0003", "office_0004",
    "playroom_0002", "study_0002",
)  # fmt: skip
NYU_CROP = (45, 9, 41, 39)  # rows 45:471, columns 41:601
GARG_REGION = (0.40810811, 0.99189189, 0.03594771, 0.96405229)
EIGEN_PICTURES = {
    f"{drive}_sync/image_02": numbers
    for drive, numbers in {
        "2011_09_26_drive_0002": _frames((0, 75, 3), without=[66]),
        "2011_09_26_drive_0009": _frames((0, 176, 16), (196, 388, 16)),
        "2011_09_26_drive_0013": _frames((0, 140, 5), without=[15, 25, 55, 75]),
        "2011_09_26_drive_0020": _frames((0, 84, 3), without=[24, 30, 39, 81]),
        "2011_09_26_drive_0023": _frames((18, 468, 18), without=[234]),
        "2011_09_26_drive_0027": _frames((0, 182, 7), without=[105, 154]),
        "2011_09_26_drive_0029": _frames((0, 196, 14), (268, 408, 14), without=[282]),
        "2011_09_26_drive_0036": _frames((0, 800, 32), without=[736]),
        "2011_09_26_drive_0046": _frames((0, 120, 5)),
        "2011_09_26_drive_0048": _frames((0, 21, 1)),
        "2011_09_26_drive_0052": _frames((0, 52, 2), without=[24, 34]),
        "2011_09_26_drive_0056": _frames((11, 286, 11), without=[132]),
        "2011_09_26_drive_0059": _frames((0, 238, 14), (274, 372, 14), without=[168]),
        "2011_09_26_drive_0064": _frames((0, 550, 22), without=[132]),
        "2011_09_26_drive_0084": _frames((49, 374, 13), without=[166]),
        "2011_09_26_drive_0086": _frames((7, 682, 27), without=[547]),
        "2011_09_26_drive_0093": _frames((0, 256, 16), (305, 417, 16)),
        "2011_09_26_drive_0096": _frames((0, 456, 19)),
        "2011_09_26_drive_0101": _frames((80, 930, 34), without=[250]),
        "2011_09_26_drive_0106": _frames((15, 15, 1), (35, 219, 8)),
        "2011_09_26_drive_0117": _frames((0, 650, 26), without=[520]),
        "2011_09_28_drive_0002": _frames((0, 90, 3), without=[15, 27, 42, 66, 69, 75]),
        "2011_09_29_drive_0071": _frames((0, 612, 36), (735, 951, 36), (1054, 1054, 1), without=[843]),
        "2011_09_30_drive_0016": _frames((0, 275, 11), without=[99]),
        "2011_09_30_drive_0018": _frames((0, 2247, 107), (2419, 2740, 107), without=[321]),
        "2011_09_30_drive_0027": _frames((0, 656, 41), (753, 1081, 41), without=[999]),
        "2011_10_03_drive_0027": _frames((0, 543, 181), (734, 4535, 181), without=[2182]),
        "2011_10_03_drive_0047": _frames((0, 800, 32), without=[256]),
    }.items()
}

VDA = PublishedProtocol(
    "Video Depth Anything",
    "video",
    {
        "kitti": Rules(
            (FrameList("500", KITTI_DRIVES, count=500), FrameList("110", KITTI_DRIVES, count=110)), max_depth_m=80.0
        ),
        "scannet": Rules(
            (
                FrameList("500", SCANNET_SCENES, count=500),
                FrameList("90", SCANNET_SCENES, count=90, stride=3),
                FrameList("tae", SCANNET_SCENES, first=20, start=10, count=170),
            ),
            max_depth_m=10.0,
            crop=(8, 8, 11, 11),
        ),
        "bonn": Rules(
            (FrameList("500", BONN_SEQUENCES, count=500), FrameList("110", BONN_SEQUENCES, start=30, count=110)),
            max_depth_m=10.0,
        ),
        "nyu": Rules((FrameList("500", NYU_SCENES, count=500),), max_depth_m=10.0, crop=NYU_CROP),
        "sintel": Rules(max_depth_m=70.0),
        "sintel_final": Rules(max_depth_m=70.0),
        "vda": Rules(
            (
                FrameList("listed", listed_in=".*(?<!_tae)"),
                FrameList("tae", listed_in=".*_tae", first=20, start=10, count=170),
            )
        ),
    },
)
PROTOCOLS = {
    "vda": VDA,
    "streaming": replace(VDA, title="streaming", alignment="first_frame", others=Rules()),
    "nyu": PublishedProtocol(
        "NYU Depth v2, test pictures", "per_frame", {"nyu": Rules(max_depth_m=10.0, crop=NYU_CROP)}
    ),
    "kitti_eigen": PublishedProtocol(
        "KITTI, Eigen's test pictures",
        "per_frame",
        {
            "kitti": Rules(
                (FrameList(scenes=tuple(EIGEN_PICTURES), numbers=EIGEN_PICTURES),),
                max_depth_m=80.0,
                region=GARG_REGION,
            )
        },
    ),
}


class NoSuchList(UserError):
    """A protocol has none of the frame lists that are asked for on this layout; it may on another."""


class Chosen(NamedTuple):
    """A sequence, which of its frames are taken, what is asked for; name and group: of the clip that it becomes."""

    found: Found
    frames: FrameList
    rules: Rules
    name: str
    group: str


def choose(
    protocol: str | None,
    found: Sequence[Found],
    scenes: Sequence[str] | None = None,
    lists: Sequence[str] | None = None,
) -> list[Chosen]:
    """Return the sequences that a protocol asks for, list by list; log what it asks for and what is missing.

    Args:
        protocol: of `PROTOCOLS`, or None: all frames of all sequences. found: of one layout.
        scenes: patterns of sequences, in place of the protocol's; of the whole name or of what follows a `/` in it.
        lists: names of the protocol's frame lists; None: all.

    Raises:
        NoSuchList: the protocol has no list of these names for the layout.
        UserError: it has nothing for the layout, or nothing is left.
    """
    if not found:
        raise UserError("a protocol needs sequences to choose from; there are none")
    if protocol is None:
        if lists:
            raise UserError("rgbd.lists chooses from the frame lists of a protocol: set protocol=NAME too")
        rules = Rules((FrameList(scenes=tuple(scenes or ())),))
    else:
        rules = _rules(protocol, found[0].layout)
        if scenes:
            rules = replace(rules, lists=tuple(replace(one, scenes=tuple(scenes)) for one in rules.lists))
    wanted = [one for one in rules.lists if not lists or one.name in lists]
    if not wanted:
        raise NoSuchList(f"rgbd.lists={list(lists or ())}: choose from {', '.join(one.name for one in rules.lists)}")
    chosen = []
    for frames in wanted:
        for sequence in _sequences(frames, found):
            listed_in = sequence.listed_in or f"{sequence.layout} {frames.name}".strip()
            group = f"{protocol} {listed_in}" if protocol else ""
            several = len(rules.lists) > 1 and not sequence.listed_in
            name = f"{sequence.name}@{frames.name}" if several else sequence.name
            chosen.append(Chosen(sequence, frames, rules, name, group))
    if not chosen:
        asked = list(scenes) if scenes else f"those of protocol={protocol}"
        names = ", ".join(sequence.name for sequence in found[:NAMED])
        raise UserError(f"rgbd.scenes: none of {len(found)} sequences is among {asked}; they are called {names}")
    if protocol is not None:
        _say(protocol, wanted, rules, found, chosen)
    return chosen


def _rules(protocol: str, layout: str) -> Rules:
    published = PROTOCOLS[protocol]
    rules = published.layouts.get(layout, published.others)
    if rules is None:
        known = ", ".join(published.layouts)
        raise UserError(
            f"protocol={protocol} has no frame list for rgbd.layout={layout or 'null'}; it has some for {known}: leave"
            " protocol out, or take protocol=streaming, which takes all frames of any data set"
        )
    return rules


def _sequences(frames: FrameList, found: Sequence[Found]) -> list[Found]:
    """Return the sequences of a list."""
    listed = [sequence for sequence in found if re.fullmatch(frames.listed_in, sequence.listed_in)]
    if frames.scenes:
        listed = [one for one in listed if any(is_called(one.name, pattern) for pattern in frames.scenes)]
    return listed[: frames.first]


def is_called(name: str, pattern: str) -> bool:
    """Return whether a sequence's name, or what follows a `/` in it, matches a pattern with * and ?."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*/{pattern}")


def _say(
    protocol: str, lists: Sequence[FrameList], rules: Rules, found: Sequence[Found], chosen: Sequence[Chosen]
) -> None:
    published, layout = PROTOCOLS[protocol], found[0].layout
    parts = [f"{frames.name}: {frames}, sequences: {sum(one.frames is frames for one in chosen)}" for frames in lists]
    far = "" if rules.max_depth_m is None else f"; ground truth to {rules.max_depth_m:g} m"
    title = LAYOUTS[layout].title if layout in LAYOUTS else "your sequences"
    log.info(
        "protocol=%s on %s: %s%s; %s in inverse depth",
        protocol, title, "; ".join(parts), far, ALIGNED[published.alignment],
    )  # fmt: skip
    asked = dict.fromkeys(scene for frames in lists for scene in frames.scenes)
    missing = [scene for scene in asked if not any(is_called(one.name, scene) for one in found)]
    if missing:
        more = ", …" if len(missing) > NAMED else ""
        log.warning(
            "protocol=%s: %d of %d sequences are not there, so that means are not those of the whole protocol: %s%s",
            protocol, len(missing), len(asked), ", ".join(missing[:NAMED]), more,
        )  # fmt: skip
