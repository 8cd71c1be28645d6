"""Serving engines: how each reads a configuration, exports for it, faults it suffers from, and proof on the engine."""
