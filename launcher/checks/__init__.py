"""What one section of a config can't know of the others. Imports no torch."""
