"""Private attributes of accelerate, checked with version 1.15.0.

`accelerate.hooks.add_hook_to_module`, which `device_map="auto"` applies to every module, saves the bound forward of a
module as `module._old_forward` and sets a wrapper that calls it as `module.forward`. `remove_hook_from_module` sets
the saved method as `module.forward`. Either attribute keeps calling the forward of the original class after the class
of the module has changed, so whoever changes the class must update both.
"""

from __future__ import annotations

SAVED_FORWARD = "_old_forward"
