"""The loop: chunked back-propagation through time with carried states."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from videomamba_depth.losses import mean_of_sums
from videomamba_depth.models.checkpoint import STUDENT_WEIGHTS, read_description, read_weights, student_weights
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.training.distributed import Ranks
from videomamba_depth.training.labeller import LabelledClip, Labeller
from videomamba_depth.training.objective import Objective
from videomamba_depth.training.prefetch import LabelledClips
from videomamba_depth.training.preview import preview_picture, write_picture
from videomamba_depth.training.restarts import draw_encode_every, draw_restarts, restart
from videomamba_depth.training.run_folder import RunFolder, RunLog
from videomamba_depth.training.schedule import WeightAverage, warmup_cosine
from videomamba_depth.training.settings import OptimSettings, TrainerSettings
from videomamba_depth.training.trainer_state import (
    Carry,
    Position,
    TrainingState,
    load_carry,
    read_shared,
    resuming,
    save_carry,
    saved_ranks,
)
from videomamba_depth.utils.checkpoint import (
    point_last,
    prune_steps,
    staging_folder,
    step_folder,
    verify_files,
    whole_folder,
)
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.signals import on_stop

log = logging.getLogger(__name__)

_NO_DECAY = ("A_log", "A_b_log", "cls_token", "pos_embed")


class Trainer:
    """Trains a student on labeled clips; `fit` runs to the last step, or until it is asked to stop.

    A step is one optimizer step on `accumulate` chunks. States and the last frame of a chunk are carried, detached,
    into the next chunk of the same clip. All that a run depends on is in its checkpoints: stopped and resumed, it
    gives the same bits as if it had run through.

    Args:
        batches_from: returns the stream of collated batches from a given batch index on.
        save_student: writes a checkpoint's `student.*` files; called as `(folder, weights, step)`.
    """

    def __init__(
        self,
        student: VideoMambaDepth,
        labeller: Labeller,
        batches_from: Callable[[int], Iterator[dict[str, Any]]],
        objective: Objective,
        settings: TrainerSettings,
        optim: OptimSettings,
        ranks: Ranks,
        run: RunFolder,
        run_log: Callable[[int], RunLog],
        save_student: Callable[[Path, dict[str, Tensor], int], None],
    ) -> None:
        self.student, self.labeller, self.objective = student, labeller, objective
        self.settings, self.optim, self.ranks, self.run = settings, optim, ranks, run
        self._batches_from, self._open_log, self._save_student = batches_from, run_log, save_student
        if settings.channels_last:
            student.to(memory_format=torch.channels_last)
        self._trainable = {name: p for name, p in student.named_parameters() if p.requires_grad}
        self._optimizer = self._build_optimizer()
        self._scaler = torch.amp.GradScaler(
            ranks.device.type, enabled=labeller.autocast_dtype == torch.float16 and ranks.device.type == "cuda"
        )
        self._forward: nn.Module = student
        if settings.compile:
            self._forward = torch.compile(student)  # type: ignore[assignment]
        if ranks.world_size > 1:
            idle = student.encode_every > 1  # the correction of features rests where every frame is encoded
            self._forward = DistributedDataParallel(self._forward, broadcast_buffers=False, find_unused_parameters=idle)
        self.step = 0
        self._position, self._carry = Position(), Carry()
        self._clip: LabelledClip | None = None
        self._clip_batch = -1  # which batch _clip is
        self._stop_signal: int | None = None
        self._average = WeightAverage(student_weights(student), optim.ema_decay)
        self._state = TrainingState(student, self._optimizer, self._scaler, self._average)

    def fit(self) -> bool:
        """Train to `settings.steps`; return False if a signal ended the run before, after saving it.

        Raises:
            UserError: a loss or gradient is not finite; raised before the optimizer step.
        """
        self._resume()
        if self.step >= self.settings.steps:
            log.info("run '%s' is already at step %d of %d", self.run.path, self.step, self.settings.steps)
            return True
        batches = self._batches_from(self._position.batch)
        # While a graph is compiled, PyTorch takes all threads for compiling: none labels beside it.
        ahead = self.settings.prefetch and not self.settings.compile
        clips = LabelledClips(batches, self.labeller, self.ranks.device, ahead)
        run_log = self._open_log(self.step) if self.ranks.is_main else None
        try:
            with (
                on_stop(self._request_stop),
                logging_redirect_tqdm(),
                tqdm(
                    total=self.settings.steps,
                    initial=self.step,
                    unit="step",
                    disable=None if self.ranks.is_main else True,
                ) as bar,
            ):
                return self._loop(clips, run_log, bar)
        finally:
            clips.close()
            if run_log is not None:
                run_log.close()

    def _loop(self, clips: LabelledClips, run_log: RunLog | None, bar: tqdm) -> bool:
        settings = self.settings
        meter = _Meter()
        while self.step < settings.steps:
            record, frames = self._train_step(clips)
            self.step += 1
            bar.update()
            meter.add(record, frames)
            last = self.step == settings.steps
            if run_log is not None and (last or self.step % settings.log_every == 0):
                record = meter.mean(self.step)
                meter = _Meter()
                run_log.write(record)
                log.info(_format_line(record, settings.steps))
            if run_log is not None and settings.picture_every and self.step % settings.picture_every == 0:
                self._write_picture(run_log)
            stop = self.ranks.any(self._stop_signal is not None)
            if stop or last or self.step % settings.checkpoint_every == 0:
                self._save()
            if stop and not last:
                log.warning("stopped at step %d; run the same command to continue", self.step)
                return False
        return True

    def _train_step(self, clips: LabelledClips) -> tuple[dict[str, float], int]:
        """Do one optimizer step on `accumulate` chunks; return its record and how many frames it saw."""
        settings = self.settings
        optim, total = self.optim, settings.schedule_steps
        lr = optim.lr * warmup_cosine(self.step, total, optim.warmup_steps, optim.final_lr_ratio)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad(set_to_none=True)
        record: dict[str, float] = {}
        frames = 0
        for i in range(settings.accumulate):
            more = (settings.steps - self.step) * settings.accumulate - i - 1
            terms, chunk_frames = self._train_chunk(clips, more, is_last=i == settings.accumulate - 1)
            frames += chunk_frames
            for name, value in terms.items():
                record[f"loss/{name}"] = record.get(f"loss/{name}", 0.0) + value / settings.accumulate
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._trainable.values(), optim.grad_clip or float("inf"))
        if not torch.isfinite(norm) and not self._scaler.is_enabled():  # a scaler skips such a step
            self._refuse("the gradient norm")
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._average.update(student_weights(self.student), self.step)
        return {**record, "optim/lr": lr, "optim/grad_norm": float(norm)}, frames

    def _train_chunk(self, clips: LabelledClips, more: int, is_last: bool) -> tuple[dict[str, float], int]:
        """Forward and backward on the next chunk; return the loss terms and the number of frames.

        Args:
            more: chunks that the run goes on with after this one.
            is_last: of this optimizer step: the ranks then exchange their gradients.
        """
        settings, ranks, position = self.settings, self.ranks, self._position
        # 1. The clip [B, N, 3, H, W] at hand; a new one is encoded and labeled once, whole: both see all of its frames.
        if self._clip is None or self._clip_batch != position.batch:
            self._clip, self._clip_batch = clips.take(), position.batch
            if more * settings.chunk_frames >= self._clip.num_frames - position.frame and self._stop_signal is None:
                clips.begin_next()
        clip, start = self._clip, position.frame
        batch_size, stop = clip.rgb.shape[0], min(start + settings.chunk_frames, clip.num_frames)
        if start >= stop:
            raise UserError(
                f"the checkpoint of step {self.step} is damaged: it goes on at frame {start} of a clip of"
                f" {clip.num_frames}; delete its folder to go back to the one before"
            )
        # 2. Its next frames. Some streams are reset, as in use; the position alone says which: resuming stays exact.
        streams = draw_restarts(settings.reset_probability, settings.seed, position, ranks.rank, batch_size)
        self._carry, chunk = restart(self._carry, clip.chunk(start, stop), streams)
        states = self._carry.states
        if states is None and self.student.encode_every > 1:
            every = draw_encode_every(self.student.encode_every, settings.seed, position.batch)
            states = self.student.init_states(batch_size, (clip.rgb.shape[-2], clip.rgb.shape[-1]), encode_every=every)
        defer = not is_last and isinstance(self._forward, DistributedDataParallel)
        with self._forward.no_sync() if defer else nullcontext():  # type: ignore[operator]
            # 3. Depth [B, n, 1, H, W] of the chunk's n frames, from the state that the chunk before has left.
            with self.labeller.autocast(ranks.device):
                depth, states, summaries = self._forward(
                    chunk.rgb, states, features=chunk.features, motion=chunk.motion
                )
            # 4. The losses, as sums and counts. Every mean runs over the valid elements of all ranks, so that a rank
            #    with few of them does not count as much as one with many; DDP divides gradients by the ranks' number.
            blocks = [summary for scale in summaries.values() for summary in scale]
            sums, tail = self.objective(depth, chunk.target, blocks, self._carry.tail)
            losses = {
                name: mean_of_sums(term.numerators, ranks.sum(term.counts)) * ranks.world_size
                for name, term in sums.items()
            }
            # 5. Backward, through the chunk alone. What is not finite ends the run before a weight is changed.
            total = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(total):
                names = [name for name, value in losses.items() if not torch.isfinite(value)]
                self._refuse(f"loss {' and '.join(names)}")
            self._scaler.scale(total / settings.accumulate).backward()
        # 6. The next chunk goes on with the state and the last frame, detached; a clip's last chunk hands on nothing.
        if stop < clip.num_frames:
            self._position, self._carry = Position(position.batch, stop), Carry(states.detach(), tail)
        else:
            self._position, self._carry = Position(position.batch + 1), Carry()
        terms = {name: float(ranks.sum(value.detach())) / ranks.world_size for name, value in losses.items()}
        return {"total": sum(terms.values()), **terms}, batch_size * (stop - start) * ranks.world_size

    def _build_optimizer(self) -> torch.optim.AdamW:
        """Biases, norms, position tables and the parameters of the recurrence do not decay."""
        decay = [p for name, p in self._trainable.items() if p.ndim > 1 and not name.endswith(_NO_DECAY)]
        rest = [p for name, p in self._trainable.items() if p.ndim <= 1 or name.endswith(_NO_DECAY)]
        groups = [{"params": decay, "weight_decay": self.optim.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.optim.lr, betas=(self.optim.beta1, self.optim.beta2))

    def _refuse(self, what: str) -> None:
        videos = ", ".join(self._clip.video_ids) if self._clip is not None else "?"
        raise UserError(
            f"{what} is not finite at step {self.step + 1}, batch {self._position.batch}, frame {self._position.frame}"
            f" (videos: {videos}); nothing was updated. Lower optim.lr, or use trainer.precision=float32;"
            f" {self._last_checkpoint()}"
        )

    def _last_checkpoint(self) -> str:
        """Return what a failed run can go on from; the checkpoint is read back for it."""
        folder = self.run.newest_checkpoint()
        if folder is None:
            return "there is no checkpoint yet"
        try:
            verify_files(folder)
            read_shared(folder)
            read_weights(folder / STUDENT_WEIGHTS)
        except Exception as error:
            return f"the last checkpoint is damaged too ({error}): delete that folder to go back to the one before"
        return f"the last checkpoint, '{folder}', was read back and is intact"

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stop_signal is not None:
            raise KeyboardInterrupt
        log.warning("%s: saving after this step; press again to quit without", signal.Signals(number).name)
        self._stop_signal = number

    def _write_picture(self, run_log: RunLog) -> None:
        """Show the student on the first frames of the clip seen last, from a new state."""
        if self._clip is None:
            return
        chunk = self._clip.chunk(0, min(self.settings.chunk_frames, self._clip.num_frames))
        with torch.no_grad(), self.labeller.autocast(self.ranks.device):
            depth = self.student(chunk.rgb, features=chunk.features, motion=chunk.motion).depth
        picture = preview_picture(self._clip.rgb[0, depth.shape[1] - 1], chunk.target.depth[0, -1], depth[0, -1])
        write_picture(self.run.pictures / f"step_{self.step:08d}.png", picture)
        run_log.picture(self.step, picture)

    def _save(self) -> None:
        """Write a checkpoint.

        Raises:
            UserError: a number is not finite, or the disk is full; the checkpoints before stay.
        """
        final = step_folder(self.run.checkpoints, self.step)
        try:
            with self.ranks.together(), whole_folder(final) if self.ranks.is_main else nullcontext():
                staging = staging_folder(final)
                with self.ranks.together():
                    if self.ranks.is_main:
                        self._save_student(staging, self._average.average, self.step)
                        self._state.save(staging, self.step, self._position)
                with self.ranks.together():  # the folder is there: every rank writes its part
                    save_carry(staging, self.ranks.rank, self._carry, self.step)
            with self.ranks.together():
                if self.ranks.is_main:
                    point_last(self.run.last, final)
                    prune_steps(self.run.checkpoints, self.settings.keep_checkpoints)
        except UserError as error:
            raise UserError(f"the checkpoint of step {self.step} failed: {error}; {self._last_checkpoint()}") from error

    def _resume(self) -> None:
        """Take up the newest checkpoint, if there is one.

        Raises:
            UserError: it is damaged, or of another number of ranks.
        """
        folder = self.run.newest_checkpoint()
        if folder is None:
            return
        with resuming(folder):
            verify_files(folder)
        ranks = saved_ranks(folder)
        if ranks != self.ranks.world_size:
            raise UserError(
                f"'{folder}' holds the states of {ranks} processes, not {self.ranks.world_size}; resume with {ranks}"
            )
        with resuming(folder):
            read_description(folder)
            self.step, self._position = self._state.take_up(folder)
            self._carry = load_carry(folder, self.ranks.rank, self.ranks.device, self.step)
        log.info("continuing '%s' from step %d", self.run.path, self.step)


class _Meter:
    """Averages the records of the steps between two log lines, and their pace."""

    def __init__(self) -> None:
        self._started, self._frames = time.perf_counter(), 0
        self._records: list[dict[str, float]] = []

    def add(self, record: dict[str, float], frames: int) -> None:
        self._records.append(record)
        self._frames += frames

    def mean(self, step: int) -> dict[str, float]:
        elapsed = time.perf_counter() - self._started
        names = {name: None for record in self._records for name in record}
        values = {name: [record[name] for record in self._records if name in record] for name in names}
        return {
            "step": step,
            **{name: sum(found) / len(found) for name, found in values.items()},
            "time/ms_per_step": 1000 * elapsed / len(self._records),
            "time/frames_per_s": self._frames / elapsed,
        }


def _format_line(record: dict[str, float], steps: int) -> str:
    losses = "  ".join(f"{k.removeprefix('loss/')} {v:8.5f}" for k, v in record.items() if k.startswith("loss/"))
    pace = record["time/ms_per_step"]
    eta_s = int(pace * (steps - record["step"]) / 1000)
    return (
        f"step {int(record['step']):6d}/{steps}  {losses}  lr {record['optim/lr']:.2e}"
        f"  grad {record['optim/grad_norm']:8.4f}  {pace:6.0f} ms/step  {record['time/frames_per_s']:6.1f} frames/s"
        f"  ETA {eta_s // 3600}:{eta_s // 60 % 60:02d}:{eta_s % 60:02d}"
    )
