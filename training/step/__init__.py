"""One step: forward and backward pass, verdict, update; and what a step reads."""
