"""Named tensors plus one JSON record, to and from sharded files."""
