"""Ask people which of two images is better: a page on this machine, and a CSV that has every answer."""
