"""Success rates on held-out tasks."""
