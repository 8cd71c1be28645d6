"""Verify on a real engine that a scaling takes effect: compare its tables and log-probabilities with exact ones."""

from __future__ import annotations

from ropewalk.serving.verify.verification import Verification, verify

__all__ = ["Verification", "verify"]
