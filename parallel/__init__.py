"""How a model is spread over processes: mesh, ZeRO, and the engines that run it."""
