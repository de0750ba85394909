"""A scorer that learns to rank images by how much they were degraded."""
