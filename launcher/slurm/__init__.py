"""Batch jobs: their script, its submission, and what it asks when it runs. Imports no torch."""
