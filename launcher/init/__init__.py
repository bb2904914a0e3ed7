"""A new run's file from a recipe, as `triax init` writes it. Imports no torch."""
