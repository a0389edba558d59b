"""Region proposals: stored on disk, drawn at random, and the methods that find them."""
