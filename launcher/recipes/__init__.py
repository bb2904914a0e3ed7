"""Recipes: commands one after the other, each once."""
