"""Pure functions on tensors: no state, no files, no randomness of their own."""
