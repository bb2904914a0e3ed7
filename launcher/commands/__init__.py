"""One module for each command of `triax`, with `add_arguments(parser)` and `run(args)`."""
