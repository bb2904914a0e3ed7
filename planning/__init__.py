"""What a run would need: memory, time, and the layouts that fit, before any device is there."""
