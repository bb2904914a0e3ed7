"""Cleaning: records through named steps, duplicates out of core, a report of what was dropped."""
