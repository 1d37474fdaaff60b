"""Make the student that is shipped from a finished run: `python scripts/ship_embedded_student.py runs/embedded/last`.

It is written beside the embedded teacher, whose encoder it uses; `checkpoint=embedded` then names it. Weights that
float16 holds exactly, such as the teacher's decoder, are stored in float16.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from videomamba_depth.models.checkpoint import (
    EMBEDDED_STUDENT,
    STUDENT_JSON,
    STUDENT_WEIGHTS,
    load_student,
    read_description,
    read_weights,
    student_weights,
)
from videomamba_depth.models.teacher_files import EMBEDDED_TEACHER
from videomamba_depth.utils.atomic import write_json
from videomamba_depth.utils.checkpoint import save_tensors, write_manifest
from videomamba_depth.utils.errors import UserError, exit_on_user_error


def main(arguments: list[str] | None = None) -> None:
    """Check that the run's encoder is the embedded teacher, write the folder, and load it again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a student's folder, runs/NAME/last")
    checkpoint = parser.parse_args(arguments).checkpoint
    description = read_description(checkpoint)
    if description["encoder"].get("model_id") != "embedded":
        raise UserError(f"'{checkpoint}' was not distilled from the embedded teacher; train with experiment=embedded")
    description["encoder"]["folder"] = f"../{EMBEDDED_TEACHER.name}"
    EMBEDDED_STUDENT.mkdir(exist_ok=True)
    weights = {name: _smallest(t) for name, t in student_weights(load_student(checkpoint)).items()}
    save_tensors(EMBEDDED_STUDENT / STUDENT_WEIGHTS, weights)
    (EMBEDDED_STUDENT / STUDENT_WEIGHTS).chmod(0o644)
    write_json(EMBEDDED_STUDENT / STUDENT_JSON, description)
    write_manifest(EMBEDDED_STUDENT)
    shipped = student_weights(load_student("embedded"))
    assert all(torch.equal(shipped[name], t.float()) for name, t in weights.items())
    size = sum(t.nbytes for t in read_weights(EMBEDDED_STUDENT / STUDENT_WEIGHTS).values())
    print(f"wrote {EMBEDDED_STUDENT.name}: {len(weights)} tensors, {size / 1e6:.2f} MB")


def _smallest(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if torch.equal(half.float(), tensor) else tensor.contiguous()


if __name__ == "__main__":
    with exit_on_user_error():
        main()
