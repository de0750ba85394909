"""Watch a folder of samples that somebody else's trainer writes."""
