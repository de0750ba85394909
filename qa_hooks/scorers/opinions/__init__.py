"""A scorer fitted on people's opinions: ratings, or which of two images is better."""
