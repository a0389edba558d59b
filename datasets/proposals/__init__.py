"""Regions of interest: on disk, drawn at random, and the methods that find them."""
