"""Context parallelism: the tokens of a sequence over several processes."""
