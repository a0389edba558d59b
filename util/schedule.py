"""How long a run is, when its learning rate drops, and how far it has come: in steps, epochs and images."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Schedule:
    """The plan of a run and its place in it. A schedule counts either epochs or steps.

    Attributes:
        num_images: images of an epoch.
        images_per_step: over all processes and all accumulated batches. What is left of an epoch after the last whole
            step is not trained on.
        epochs, lr_drop: a schedule in epochs: its length, and after how many epochs lr drops (None: never).
        max_steps, lr_drop_step: a schedule in steps, likewise. ``epochs`` is None then.
        warmup_steps: first steps, in which the learning rate rises linearly.
        step: optimizer steps done.
        epoch: epochs done.
        images: images of the present epoch that were trained on.
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
    step: int = 0
    epoch: int = 0
    images: int = 0
    total_steps: int = field(init=False)
    drop_step: int | None = field(init=False)

    def __post_init__(self) -> None:
        self._plan()

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch."""
        return self.num_images // self.images_per_step

    @property
    def steps_left_in_epoch(self) -> int:
        """Steps that the rest of the present epoch has images for."""
        return (self.num_images - self.images) // self.images_per_step

    @property
    def epochs_done(self) -> float:
        """Epochs done, the share of the present one included."""
        return self.epoch + self.images / self.num_images

    @property
    def is_finished(self) -> bool:
        """Whether the last step is done."""
        return self.step >= self.total_steps

    def advance(self) -> None:
        """One more step is done."""
        self.step += 1
        self.images += self.images_per_step
        self._finish_epoch()

    def go_on_at(self, step: int, epoch: int, images: int) -> None:
        """Take the place of a stopped run, which may have had another number of processes or images per step.

        Epochs that are done stay done. What is left of a schedule in epochs is counted from the images that were
        seen; a schedule in steps stays as it is.
        """
        self.step, self.epoch, self.images = step, epoch, images
        self._finish_epoch()
        self._plan()

    def learning_rate_factor(self, step: int) -> float:
        """Rises linearly to 1 in the first ``warmup_steps``; a tenth from ``drop_step`` on. Steps count from 0."""
        drop = 0.1 if self.drop_step is not None and step >= self.drop_step else 1.0
        return drop * min(1.0, (step + 1) / max(self.warmup_steps, 1))

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
        """The step at which ``epoch`` begins; the present step if it has begun already."""
        if epoch <= self.epoch:
            return self.step
        return self.step + self.steps_left_in_epoch + (epoch - self.epoch - 1) * self.steps_per_epoch
