"""How a run starts: command line, run config, environment discovery, supervision."""
