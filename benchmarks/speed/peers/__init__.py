"""Who is measured, one file each: this rotation, the plain copy that is the limit, and other projects' rotations."""

from __future__ import annotations

from benchmarks.speed.peers.base import Peer

from ropewalk.registry import registered

_ORDER = ("limit", "ours", "peer")
PEERS: dict[str, Peer] = {
    name: cls()
    for name, cls in sorted(
        registered(__name__, __path__, Peer).items(),  # type: ignore[type-abstract]
        key=lambda item: _ORDER.index(item[1].role),
    )
}
__all__ = ["PEERS", "Peer"]
