"""The engines by name; an engine's module is imported only when it is chosen."""

ENGINES = {
    "native": "triax.parallel.engines.native:NativeEngine",
    "deepspeed": "triax.parallel.engines.deepspeed:DeepSpeedEngine",
}
"""`parallel.engine` to `module:class`."""
