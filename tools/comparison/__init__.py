"""The parts of ``tools/compare.py``: what to run, running it, what came of it."""
