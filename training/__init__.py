"""One run's inside: step, loop, optimizer, budget, metrics, evaluation."""
