"""How fast a training step is, how fast it could be, and where its time goes."""
