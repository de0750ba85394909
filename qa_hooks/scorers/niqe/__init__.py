"""NIQE (Mittal et al. 2013): the distance of an image from the statistics of natural ones."""
