"""Server sides, one method per file."""
