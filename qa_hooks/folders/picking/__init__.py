"""Keep the best images of a folder, or of a table of scores."""
