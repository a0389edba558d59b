"""A detector looked at closely on a labelled set: curves, confusions and the images it is worst at."""
