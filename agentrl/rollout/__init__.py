"""Tasks in, trajectory groups out."""
