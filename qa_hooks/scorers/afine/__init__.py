"""A-FINE: a full-reference score that knows that the reference may be the worse image."""
