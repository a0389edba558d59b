"""Limits for files and flags, so that a typing error or a small file cannot use all memory."""

LARGEST_SIDE = 10_000
"""Largest side in pixels to which images are resized; more than ten times the papers' sizes."""

LARGEST_SAVED_SIDE = 4_096
"""Largest side in pixels that a file of another project may ask for; for more, the user must type it."""

MOST_LAYERS = 1_000
MOST_QUERIES = 100_000
MOST_CLASSES_WITHOUT_BOXES = 1_000
"""Largest number of categories in a data set that has fewer boxes than categories."""
