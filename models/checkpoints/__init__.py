"""Checkpoints of this project and of others: recognised by their content, renamed, loaded, and written."""
