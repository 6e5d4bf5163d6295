"""`--dry-run`: memory and time before cost."""
