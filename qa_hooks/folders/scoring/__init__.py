"""Score every image of a folder into a table that grows as it goes."""
