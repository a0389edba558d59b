"""Stops all processes of a run after the same step if one of them gets a signal."""

from __future__ import annotations

import torch
import torch.distributed as dist

from util import distributed
from util.signals import HeldSignals


class Stopping:
    """Asks after every step whether one of the processes has got a signal.

    The CPUs exchange the answer during the next step, so that no process waits for another or for its GPU. The answer
    is therefore known one step later.
    """

    def __init__(self, held: HeldSignals) -> None:
        """Collective: makes a process group for this question."""
        self._held = held
        self._group = dist.new_group(backend="gloo") if distributed.world_size() > 1 else None
        self._question: tuple[torch.Tensor, dist.Work] | None = None

    def after_step(self) -> int:
        """The number of the signal to stop for, or 0; the same on all processes. Collective."""
        if self._group is None:
            return self._held.received
        answer = self._answer()
        self._ask()
        return answer

    def now(self) -> int:
        """As :meth:`after_step`, but waits for the answer. Collective."""
        if self._group is None:
            return self._held.received
        before = self._answer()
        self._ask()
        return max(before, self._answer())

    def _ask(self) -> None:
        flag = torch.tensor([self._held.received])
        work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._question = (flag, work)

    def _answer(self) -> int:
        if self._question is None:
            return 0
        flag, work = self._question
        self._question = None
        work.wait()
        return int(flag)
