"""Detectors and pretext tasks by name. A new one is one file that ends in a record, and one entry here."""

from __future__ import annotations

from models.conditional_transformer import CONDITIONAL
from models.dab_transformer import DAB
from models.deformable_transformer import DEFORMABLE
from models.pretext.detreg import DETREG
from models.pretext.siamese import SIAMESE
from models.pretext.up_detr import UP_DETR
from models.transformer import VANILLA

DETECTORS = {"conditional": CONDITIONAL, "vanilla": VANILLA, "deformable": DEFORMABLE, "dab": DAB}
"""``--detr`` -> its record; the first is the default."""

PRETEXTS = {"siamese": SIAMESE, "updetr": UP_DETR, "detreg": DETREG}
"""``--method`` -> its record; the first is the default."""
