"""What a run leaves: its directory, figures, checkpoints and pictures."""
