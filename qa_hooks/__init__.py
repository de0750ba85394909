"""qa_hooks."""
