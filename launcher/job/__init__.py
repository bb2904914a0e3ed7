"""One process's part of a run: its parts, where it goes on from, what it says."""
