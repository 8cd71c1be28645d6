"""Prove on a real engine that a scaling took effect: its tables and its answers against exact ones."""

from __future__ import annotations

from ropewalk.serving.verify.verification import Verification, verify

__all__ = ["Verification", "verify"]
