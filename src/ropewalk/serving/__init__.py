"""Serving a model: engines, export of configurations for them, doctor (finds faults), verify (tests a real engine)."""
