"""Client sides, one method per file."""
