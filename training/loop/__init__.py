"""The loop over steps, and how processes agree on what to do between them."""
