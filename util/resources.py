"""Bounds on what a file or a flag can ask for, so that nobody's typing error or small file takes all memory."""

LARGEST_SIDE = 10_000
"""Pixels of a side to which images are resized; ten times that of the papers' recipes and more."""

LARGEST_SAVED_SIDE = 4_096
"""Pixels of the sides that a file of another project may ask for; more has to be typed."""

MOST_LAYERS = 1_000
MOST_QUERIES = 100_000
MOST_CLASSES_WITHOUT_BOXES = 1_000
"""Categories that a data set may list with fewer boxes than categories."""
