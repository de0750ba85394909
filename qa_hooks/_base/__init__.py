"""Plumbing that nobody outside imports: checks, files, hashes, processes, random numbers, frozen networks."""
