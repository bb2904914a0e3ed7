"""Text to tokens to shards on disk to sample numbers to batches."""
