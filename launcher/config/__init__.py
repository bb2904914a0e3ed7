"""run.toml: read, explained, checked section by section, and written as resolved. No torch."""
