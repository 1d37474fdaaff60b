#!/usr/bin/env python
"""Measure what depth teachers know about single pictures, beside a constant and a ramp fitted to the same pictures.

    python scripts/evaluate_teacher.py embedded runs/embedded_teacher/latest
    python scripts/evaluate_teacher.py embedded --frames 0 --rgbd living_room=icl:data/icl street=kitti:data/kitti
    python scripts/evaluate_teacher.py embedded --frames 0 --videos clips --pictures sheet.jpg

Held-out worlds of every family, and data sets as they are unpacked (docs/evaluation.md has their layouts), or folders
rgb/ and depth/ with the stored units per meter. Scale and shift are fitted per picture in inverse depth (Video Depth
Anything's protocol, per frame); AbsRel, δ1, and on worlds the F1 of the edges. A sheet of pictures shows the
depth of the middle frame of each video, teachers side by side.
"""

import argparse
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import torch

from videomamba_depth.data.synthetic import SceneFamily
from videomamba_depth.data.video.find import VideoSource, find_sources
from videomamba_depth.data.video.probe import probe_video
from videomamba_depth.data.video.reader import read_frames
from videomamba_depth.evaluation.clips import EvaluationClip
from videomamba_depth.evaluation.datasets.layouts import LAYOUTS, find_layout
from videomamba_depth.evaluation.datasets.rgbd import RgbdFormat, load_rgbd
from videomamba_depth.evaluation.pictures import tile
from videomamba_depth.evaluation.teacher_skill import skill_on_clips, skill_on_worlds
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.teacher_files import EMBEDDED_TEACHER
from videomamba_depth.utils.arguments import path_argument, whole
from videomamba_depth.utils.color import INFERNO
from videomamba_depth.utils.errors import UserError, exit_on_user_error
from videomamba_depth.utils.logger import configure_logging

log = logging.getLogger("evaluate_teacher")


@dataclass(frozen=True)
class RgbdSet:
    """Pictures with depth: their name in the table, where they are, and their layout (None: recognized) or, of folders
    rgb/ and depth/, the stored units per meter.
    """

    name: str
    folder: Path
    layout: str | None = None
    depth_scale: float | None = None

    @staticmethod
    def parse(text: str) -> "RgbdSet":
        """Read NAME=FOLDER, NAME=LAYOUT:FOLDER or NAME=UNITS:FOLDER."""
        name, _, rest = text.partition("=")
        kind, colon, folder = rest.partition(":")
        if not colon:
            kind, folder = "", rest
        try:
            depth_scale = None if kind in (*LAYOUTS, "") else float(kind)
        except ValueError:
            depth_scale = 0.0
        if not folder or depth_scale == 0.0:
            raise UserError(
                f"--rgbd must be NAME=FOLDER, NAME=LAYOUT:FOLDER or NAME=UNITS_PER_METER:FOLDER, with a layout of"
                f" {', '.join(LAYOUTS)}; got '{text}'"
            )
        return RgbdSet(name, path_argument(folder), kind if kind in LAYOUTS else None, depth_scale)

    def clips(self) -> list[EvaluationClip]:
        """Open all sequences.

        Raises:
            UserError: there is none, or a file cannot be read.
        """
        if self.depth_scale is not None:
            return [load_rgbd(self.folder, depth_scale=self.depth_scale)]
        found = find_layout(self.folder, self.layout)
        if not found:
            raise UserError(
                f"'{self.folder}' is no data set of a known layout: write {self.name}=UNITS_PER_METER:FOLDER"
            )
        return [RgbdFormat().clip(sequence.name, sequence.open()) for sequence in found]


def native_size(name: str) -> int:
    """Return the short side in px that a teacher's own preprocessing asks for, or Depth Anything's 518."""
    file = (EMBEDDED_TEACHER if name == "embedded" else Path(name)) / "preprocessor_config.json"
    return int(json.loads(file.read_text(encoding="utf-8"))["size"]["height"]) if file.exists() else 518


def table(report: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the lines of a Markdown table: set, teacher, AbsRel, change against the better baseline, δ1, F1."""
    lines = [
        "| pictures | teacher | AbsRel | against the better baseline | δ1 | edge F1 | constant | ramp |",
        "|" + "---|" * 8,
    ]
    for pictures, teachers in report.items():
        for teacher, s in teachers.items():
            gain = 100 * (s["abs_rel"] / min(s["constant"], s["ramp"]) - 1)
            edges = f"{s['boundary_f1']:.3f}" if "boundary_f1" in s else ""
            lines.append(
                f"| {pictures} | {teacher} | {s['abs_rel']:.3f} | {gain:+.0f} % | {s['delta1']:.3f} | {edges} "
                f"| {s['constant']:.3f} | {s['ramp']:.3f} |"
            )
    return "\n".join(lines)


def draw_video(source: VideoSource, teachers: dict[str, DepthAnythingEncoder], *, with_input: bool) -> np.ndarray:
    """Return uint8 RGB [h,w,3]: the middle frame of a video, and each teacher's depth in colors of its own range."""
    info = probe_video(source.path)
    rgb = read_frames(source.path, [info.num_frames // 2], info=info)[0]
    pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
    tiles = [tile(rgb, source.video_id)] if with_input else []
    for name, teacher in teachers.items():
        inv_depth = teacher.predict_depth(pixels)[0, 0].numpy()
        low, high = np.percentile(inv_depth, [2, 98])
        label = Path(name).name if tiles else f"{source.video_id}: {Path(name).name}"
        tiles.append(tile(INFERNO(inv_depth, (float(low), float(high))), label))
    return np.concatenate(tiles, axis=1)


def draw_sheet(videos: Path, teachers: dict[str, DepthAnythingEncoder], file: Path, *, with_input: bool) -> None:
    """Write one picture with a row for each video."""
    strips = [draw_video(source, teachers, with_input=with_input) for source in find_sources(videos)]
    width = max(strip.shape[1] for strip in strips)
    strips = [cv2.copyMakeBorder(strip, 0, 0, 0, width - strip.shape[1], cv2.BORDER_CONSTANT) for strip in strips]
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), np.concatenate(strips)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", nargs="+", type=os.path.expanduser, help="'embedded', a folder or a hub id")
    parser.add_argument("--frames", type=whole(0), default=64, help="held-out scenes per family of worlds; 0 for none")
    parser.add_argument("--rgbd", nargs="*", default=[], metavar="NAME=LAYOUT:FOLDER", help=", ".join(LAYOUTS))
    parser.add_argument("--videos", type=path_argument, metavar="FOLDER", help="of which --pictures shows the middle")
    parser.add_argument("--pictures", type=path_argument, metavar="FILE", help="a sheet of the teachers' depth there")
    parser.add_argument("--depth-only", action="store_true", help="leave out the frames themselves in --pictures")
    parser.add_argument("--threads", type=whole(1), default=1)
    parser.add_argument("--json", type=path_argument, metavar="FILE", help="write the numbers there as well")
    args = parser.parse_args(argv)
    configure_logging()
    if (args.videos is None) != (args.pictures is None):
        raise UserError("--videos FOLDER and --pictures FILE go together; give both")
    if args.pictures is not None and args.pictures.suffix.lower() not in (".jpg", ".png"):
        raise UserError(f"--pictures must end in .jpg or .png; got '{args.pictures}'")
    sets = [RgbdSet.parse(text) for text in args.rgbd]
    names = [*(get_args(SceneFamily) if args.frames else ()), *(s.name for s in sets)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--rgbd: the name {twice[0]} stands for two sets of pictures; give each its own")
    torch.set_num_threads(args.threads)
    clips = {s.name: s.clips() for s in sets}
    report: dict[str, dict[str, dict[str, float]]] = {}
    teachers = {n: DepthAnythingEncoder.from_pretrained(n, short_side=native_size(n)) for n in args.teachers}
    if args.pictures is not None:
        draw_sheet(args.videos, teachers, args.pictures, with_input=not args.depth_only)
    for name, teacher in teachers.items():
        worlds = skill_on_worlds(teacher.predict_depth, args.frames) if args.frames else {}
        scored = worlds | {key: skill_on_clips(teacher.predict_depth, found) for key, found in clips.items()}
        for pictures, scores in scored.items():
            report.setdefault(pictures, {})[name] = scores
    if report:
        print(table(report))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
