"""The training samples of the pretext tasks: one view or two views of an image, and regions of it."""
