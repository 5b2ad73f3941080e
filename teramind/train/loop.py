"""The loop: steps, what is logged and saved between them, and how it stops."""

from __future__ import annotations

import copy
import signal
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from teramind.engine.run import stop_signals
from teramind.errors import ComputationError, Interrupted
from teramind.model.checkpoint import save_checkpoint
from teramind.model.network import TeraMind
from teramind.train.centring import centre_taps
from teramind.train.crops import Crops, Stream, generator, stack
from teramind.train.distributed import Processes
from teramind.train.evaluation import HeldOut, Pictures, by_timestep
from teramind.train.loading import Loader
from teramind.train.logs import Log
from teramind.train.objective import Objective
from teramind.train.optimizer import rate
from teramind.train.options import Options
from teramind.train.state import Learner, Progress, save_state

CHECKPOINT = "checkpoint.safetensors"
CENTRED_ON, CENTRED_AT_ONCE = 12, 4  # crops


@dataclass(frozen=True)
class Report:
    """What a training did.

    Attributes:
        steps: optimiser steps, over all sessions.
        seconds: of training, over all sessions.
        crops_per_second: of this session.
        waiting: the part of this session in which the training waited for crops.
        checkpoint: the network.
    """

    steps: int
    seconds: float
    crops_per_second: float
    waiting: float
    checkpoint: Path

    def summary(self) -> str:
        """A line for a person."""
        return (
            f"{self.steps:,} steps in {self.seconds / 60:.1f} min, {self.crops_per_second:.1f} crops/s, "
            f"{self.waiting:.1%} of the time waiting for crops: {self.checkpoint}"
        )


@dataclass
class Loop:
    """Everything that a training consists of.

    Attributes:
        run: folder to write, by the first process.
        options: how to train.
        learner: what is trained.
        objective: its loss.
        crops: to train on.
        loader: batches.
        processes: this one among all.
        progress: where to begin.
        log: of the first process; None for the others.
        held_out: to test on.
        pictures: to draw.
        about: metadata of the checkpoint.
    """

    run: Path
    options: Options
    learner: Learner
    objective: Objective
    crops: Crops
    loader: Loader
    processes: Processes
    progress: Progress
    log: Log | None
    held_out: HeldOut | None
    pictures: Pictures | None
    about: dict[str, Any]

    def execute(self) -> Report:
        """Train to the end.

        Raises:
            Interrupted: after SIGTERM or SIGINT, with the state saved.
            ComputationError: for a loss that is not a number; the last saved state stands.
        """
        options, progress = self.options, self.progress
        self._shared = self.processes.shared(self.objective)
        self._scaler = torch.amp.GradScaler(self.processes.device.type, enabled=options.dtype == "float16")
        if progress.scaler:
            self._scaler.load_state_dict(progress.scaler)
        self._start, self._before = perf_counter(), progress.seconds
        self._first_step = progress.step
        self._forget()
        saved = perf_counter()
        with stop_signals() as received:
            while True:
                stop, done = self.processes.largest(bool(received), self._done() if self.processes.first else 0.0)
                if stop or done >= 1:
                    break
                self._step(done)
                if options.centre_every and progress.step % options.centre_every == 0:
                    self._centre()
                self._report_step()
                if perf_counter() - saved >= options.snapshot_minutes * 60 > 0:
                    self._save()
                    saved = perf_counter()
            self._save()
        if stop and done < 1:
            number = received[0] if received else signal.SIGTERM
            raise Interrupted(f"stopped at step {progress.step}; --resume goes on from there", number)
        seconds = perf_counter() - self._start
        crops = (progress.step - self._first_step) * options.batch
        return Report(
            progress.step, progress.seconds, crops / seconds, self.loader.waited / seconds, self.run / CHECKPOINT
        )

    def _done(self) -> float:
        """The part of the training that is done; 1 or more ends it."""
        seconds = self._before + perf_counter() - self._start
        steps, minutes = self.options.steps, self.options.minutes
        by_steps = 0.0 if steps is None else self.progress.step / steps if steps else 1.0
        return max(by_steps, 0.0 if minutes is None else seconds / (60 * minutes))

    # ---- a step --------------------------------------------------------------------------------------------------

    def _step(self, done: float) -> None:
        """One step of the optimiser."""
        options, optimizer, net = self.options, self.learner.optimizer, self.learner.net
        self._lr = options.lr * rate(options.schedule, self.progress.step, done, options.warmup)
        for group in optimizer.param_groups:
            group["lr"] = self._lr
        if net.config.dropout:
            number = self.progress.step * self.processes.count + self.processes.rank
            torch.manual_seed(int(generator(options.seed, Stream.DROPOUT, number).integers(2**63)))
        losses = [self._backward(part == options.accumulate - 1) for part in range(options.accumulate)]
        self._scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(net.parameters(), options.clip)
        self._scaler.step(optimizer)
        self._scaler.update()
        optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        if self.learner.average:
            self.learner.average.update(net, self.progress.step)
        self._measured.append(torch.stack([torch.stack(losses).mean(), norm]).detach())

    def _backward(self, last: bool) -> Tensor:
        """Gradients of a part of the step; its loss."""
        options, device = self.options, self.processes.device
        batch = next(self.loader)
        autocast = (
            nullcontext()
            if options.dtype == "float32"
            else torch.autocast(device.type, dtype=getattr(torch, options.dtype))
        )
        with nullcontext() if last else self.processes.keep_gradients(self._shared):
            with autocast:
                loss: Tensor
                loss, errors = self._shared(*batch)
            self._scaler.scale(loss / options.accumulate).backward()
        self._errors.append((batch[3], errors))
        return loss.detach()

    def _centre(self) -> None:
        """Move means into centre taps; see ``centre_taps``. The crops are the same in every process and each time."""
        crops = stack([self.crops.example(number, number, CENTRED_ON) for number in range(CENTRED_ON)])

        device = self.processes.device

        def predict(net: TeraMind) -> None:
            training = net.training
            net.eval()
            for start in range(0, CENTRED_ON, CENTRED_AT_ONCE):
                part = slice(start, start + CENTRED_AT_ONCE)
                with torch.enable_grad():  # the plain forms of the network, whose features lie pixel by pixel
                    self.objective.errors(net, *(torch.from_numpy(values[part]).to(device) for values in crops))
            net.train(training)

        with torch.compiler.set_stance("force_eager"):
            centre_taps(self.learner.net, predict)
            if self.learner.average:
                centre_taps(self.learner.average.net, predict)

    # ---- between steps -------------------------------------------------------------------------------------------

    def _report_step(self) -> None:
        """Log, test and draw, when it is time."""
        options, step = self.options, self.progress.step
        if step % options.log_every == 0:
            self._log_training()
        if not self.log:
            return
        with torch.compiler.set_stance("force_eager"):  # each shape would be compiled anew
            if self.held_out and step % options.evaluate_every == 0:
                self.log.write("held_out", step, self.held_out.test(self._evaluated()))
            if self.pictures and options.sample_every and step % options.sample_every == 0:
                self.log.write("sample", step, self.pictures.draw(self._evaluated(), step))
        self.learner.net.train()

    def _evaluated(self) -> TeraMind:
        """The network that is tested and kept."""
        return self.learner.average.net if self.learner.average else self.learner.net.eval()

    def _log_training(self) -> None:
        """Means over the steps since the last line, of this process's crops."""
        measured = self._check()
        t, errors = (torch.cat(parts, dim=-1) for parts in zip(*self._errors, strict=True))
        seconds, waited = perf_counter() - self._since, self.loader.waited - self._waited
        values: dict[str, Any] = {"loss": float(measured[:, 0].mean())}
        values |= dict(zip(("boundary", "unshifted"), errors.mean(1).tolist(), strict=False))
        norms = measured[np.isfinite(measured[:, 1]), 1]  # scaled steps that overflowed were not taken
        values |= {
            "gradient_norm": float(norms.mean()) if len(norms) else None,
            "lr": self._lr,
            "crops_per_second": len(measured) * self.options.batch / seconds,
            "waiting": waited / seconds,
            "minutes": (self._before + perf_counter() - self._start) / 60,
            "by_timestep": by_timestep(t, errors[0]),
        }
        if self.log:
            self.log.write("train", self.progress.step, values)
        self._forget()

    def _forget(self) -> None:
        """Begin the next line of the log."""
        self._measured: list[Tensor] = []
        self._errors: list[tuple[Tensor, Tensor]] = []
        self._since, self._waited = perf_counter(), self.loader.waited

    def _check(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(steps, 2) loss and gradient norm since the last line of the log, all of them numbers.

        Raises:
            ComputationError: naming the first step whose loss, or gradient without loss scaling, is not a number.
        """
        if not self._measured:
            return np.empty((0, 2))
        measured = torch.stack(self._measured).double().cpu().numpy()
        judged = measured[:, :1] if self._scaler.is_enabled() else measured  # scaled steps may overflow and are skipped
        bad = ~np.isfinite(judged).all(1)
        if bad.any():
            step = self.progress.step - len(bad) + int(bad.argmax()) + 1
            raise ComputationError(
                f"the loss or its gradient is not a number at step {step} (lr {self._lr:g}): the state saved before "
                "stands; train anew with a lower --lr or another --dtype"
            )
        return measured

    def _save(self) -> None:
        """Save state and checkpoint, if all is well."""
        self._check()
        self.progress.seconds = self._before + perf_counter() - self._start
        self.progress.scaler = self._scaler.state_dict()
        if not self.processes.first:
            return
        save_state(self.run, self.learner, self.progress)
        net = self.learner.average.net if self.learner.average else self.learner.net
        trained = {"steps": self.progress.step, "minutes": round(self.progress.seconds / 60, 2)}
        if self.options.checkpoint_dtype == "float16":
            net = copy.deepcopy(net).half()
        save_checkpoint(self.run / CHECKPOINT, net, **self.about, training=trained)
