"""Detectors written as files that run without this project."""
