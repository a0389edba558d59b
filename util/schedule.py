"""The length of a run, how its learning rate falls, and its progress in steps, epochs and images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

LRSchedule = Literal["step", "cosine"]
"""step: a tenth from one point on; cosine: along half a cosine to 0 at the end (SGDR, 1608.03983)."""


@dataclass
class Schedule:
    """The plan of a run and its progress. A schedule counts either epochs or steps.

    Attributes:
        num_images: images per epoch.
        images_per_step: of all processes and all accumulated batches. Images of an epoch after its last whole step are
            skipped.
        epochs, lr_drop: for a schedule in epochs: its length, and after how many epochs lr drops (None: never).
        max_steps, lr_drop_step: the same for a schedule in steps; ``epochs`` is then None.
        warmup_steps: first steps, in which the learning rate rises linearly.
        lr_schedule: how the learning rate falls; with "cosine" there is no drop.
        step: optimizer steps done.
        epoch: epochs done.
        images: images done of the current epoch.
        total_steps: the step after which the run ends.
        drop_step: the first step with the lower learning rate, or None.
    """

    num_images: int
    images_per_step: int
    epochs: int | None = None
    lr_drop: int | None = None
    max_steps: int | None = None
    lr_drop_step: int | None = None
    warmup_steps: int = 0
    lr_schedule: LRSchedule = "step"
    step: int = 0
    epoch: int = 0
    images: int = 0
    total_steps: int = field(init=False)
    drop_step: int | None = field(init=False)

    def __post_init__(self) -> None:
        self._plan()

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch."""
        return self.num_images // self.images_per_step

    @property
    def steps_left_in_epoch(self) -> int:
        """Steps left in the current epoch."""
        return (self.num_images - self.images) // self.images_per_step

    @property
    def epochs_done(self) -> float:
        """Epochs done, including the share of the current epoch."""
        return self.epoch + self.images / self.num_images

    @property
    def is_finished(self) -> bool:
        """Whether the last step is done."""
        return self.step >= self.total_steps

    def advance(self) -> None:
        """Count one step."""
        self.step += 1
        self.images += self.images_per_step
        self._finish_epoch()

    def go_on_at(self, step: int, epoch: int, images: int) -> None:
        """Continue from the progress of a stopped run, perhaps with another number of processes or images per step.

        A schedule in epochs plans its remaining steps again, from the images that are left. A schedule in steps does
        not change.
        """
        self.step, self.epoch, self.images = step, epoch, images
        self._finish_epoch()
        self._plan()

    def learning_rate_factor(self, step: int) -> float:
        """What the learning rates are multiplied by in ``step``, counted from 0 and not before the present one.

        It rises linearly to 1 in the first ``warmup_steps``. With "step" it is a tenth of that from ``drop_step`` on,
        with "cosine" it is multiplied by (1 + cos(pi * share)) / 2, where share is that of the run that is done: of its
        steps or, where the schedule counts epochs, of its images.
        """
        warmed = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        if self.lr_schedule == "cosine":
            return warmed * (1 + math.cos(math.pi * self._share_done(step))) / 2
        return warmed * (0.1 if self.drop_step is not None and step >= self.drop_step else 1.0)

    def _share_done(self, step: int) -> float:
        """The share of the run that is done before ``step``.

        In epochs it follows from the place of ``step`` alone, so a run that goes on with other batches goes on along
        the same curve.
        """
        if self.epochs is None:
            return min(1.0, step / self.max_steps)
        ahead, left = step - self.step, self.steps_left_in_epoch
        epoch, images = self.epoch, self.images + ahead * self.images_per_step
        if ahead >= left:
            more, steps = divmod(ahead - left, self.steps_per_epoch)
            epoch, images = epoch + 1 + more, steps * self.images_per_step
        return min(1.0, (epoch + images / self.num_images) / self.epochs)

    def _finish_epoch(self) -> None:
        if self.images and not self.steps_left_in_epoch:
            self.epoch, self.images = self.epoch + 1, 0

    def _plan(self) -> None:
        if self.epochs is None:
            self.total_steps, self.drop_step = self.max_steps, self.lr_drop_step
        else:
            self.total_steps = self._first_step_of(self.epochs)
            self.drop_step = None if self.lr_drop is None else self._first_step_of(self.lr_drop)

    def _first_step_of(self, epoch: int) -> int:
        """The step at which ``epoch`` begins; the current step if it has already begun."""
        if epoch <= self.epoch:
            return self.step
        return self.step + self.steps_left_in_epoch + (epoch - self.epoch - 1) * self.steps_per_epoch
