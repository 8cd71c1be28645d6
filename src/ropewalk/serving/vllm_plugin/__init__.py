"""A plugin for vLLM that gives every request its own YaRN factor.

vLLM loads it through the entry point `vllm.general_plugins` and calls `register` in each of its processes. It does
nothing unless a model's rope dict has the type `ropewalk_dynamic_yarn` (`ropewalk export --engine vllm` writes one):

- A request gets the smallest factor of the list that covers its prompt and `max_tokens` (`RequestFactors`).
- One rotary table holds the rows of all factors one after the other. The positions of a request are shifted to the rows
  of its factor, so the attention kernels and the paged KV cache stay as they are.
- The factor becomes a part of the request's cache salt, so that prefix caching never shares keys of different factors.
"""

from __future__ import annotations

import logging


def register() -> None:
    """Install the hooks in this process; called by vLLM, possibly more than once.

    A vLLM without the functions that they wrap is left as it is, because an error here would stop all of its servers.
    It refuses the rope type by itself.
    """
    from ropewalk.serving.vllm_plugin.hooks import install

    try:
        install()
    except (ImportError, AttributeError) as error:
        logging.getLogger("vllm.ropewalk").info("ropewalk's request factors do not work with this vLLM: %s", error)
