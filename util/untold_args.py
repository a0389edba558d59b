"""Flags of the architecture that checkpoints of other projects may not tell."""

from __future__ import annotations

import argparse


def add_untold_arguments(parser: argparse.ArgumentParser) -> None:
    """Add these flags as a group."""
    group = parser.add_argument_group("what a checkpoint of another project does not tell")
    group.add_argument("--nheads", type=int, help="attention heads; default: 8")
    group.add_argument("--num_queries", type=int, help="of a two-stage detector; default: 300")
    group.add_argument("--dilation", action="store_true", default=None, help="stride 16 in the last stage (DC5)")
    group.add_argument("--backbone", metavar="timm:NAME", help="a backbone other than a ResNet")
