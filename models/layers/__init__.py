"""The parts that models are built from, as plain single-device PyTorch."""
