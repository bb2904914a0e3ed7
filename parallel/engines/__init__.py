"""The engines by name; an engine's module is imported only when it is chosen."""

ENGINES = {"native": "triax.parallel.engines.native:NativeEngine"}
"""`parallel.engine` to `module:class`."""
