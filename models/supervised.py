"""Training on labelled boxes, with the interface of the pretext tasks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.profiler import record_function

from models.criterion import SetCriterion
from models.detr import DETR
from util.nested_tensor import NestedTensor


class SupervisedDETR(nn.Module):
    """A detector and its criterion: batch -> loss."""

    def __init__(self, *, detector: DETR, criterion: SetCriterion) -> None:
        super().__init__()
        self.detector = detector
        self.criterion = criterion

    def forward(self, batch: tuple[NestedTensor, list[dict[str, Tensor]]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses of one batch of images and targets (labels [T], boxes [T, 4] cxcywh in [0, 1]).

        Returns:
            The weighted sum over terms and decoder layers (scalar), and scalars for the log: each term of the last
            layer, unweighted (with two stages also ``loss_enc_...`` of the proposals), ``class_error`` and
            ``cardinality_error``.
        """
        images, targets = batch
        with record_function("backbone"):
            features = self.detector.features(images)
        with record_function("transformer"):
            _, _, outputs = self.detector.ask(features, images.mask, self.detector.queries(len(images)))
        losses, matching = self.criterion(outputs, targets)
        with record_function("losses"):
            total = self.criterion.total(losses)
            logs = {f"loss_{name}": value[-1] for name, value in losses.items()}
            logs |= self.criterion.errors(outputs, targets, matching)
        return total, {"loss": total, **logs}
