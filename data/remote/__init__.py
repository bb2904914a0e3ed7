"""Files in stores: found, read by range, kept for a while."""
