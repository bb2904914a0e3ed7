"""What data and model agree on about tokens."""

IGNORE_INDEX = -100
"""The target of a position that is not to be predicted (PyTorch's own default)."""
