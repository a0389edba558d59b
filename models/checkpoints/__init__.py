"""Checkpoints of this project and of others: recognised by content, renamed, loaded, and written for others."""
