"""A closer look at a detector on a labelled data set: curves, the confusion matrix, the worst images."""
