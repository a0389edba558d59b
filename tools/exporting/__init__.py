"""Writes detectors as files that run without this project."""
