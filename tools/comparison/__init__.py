"""The parts of ``tools/compare.py``: what to run, running it, and the report."""
