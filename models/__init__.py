"""The transformer as plain single-device PyTorch, and what can be said of it without running it."""
