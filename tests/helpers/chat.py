"""Chat templates for tokenizers of tests."""

from __future__ import annotations

import copy

# Trims what is said, as the templates of Llama 3 and Gemma do.
TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] | trim }}[end]"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
# Accepts no system message, as the template of Gemma 2.
WITHOUT_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


def with_template(tokenizer, template=TEMPLATE):
    """Return a copy of a tokenizer with a chat template."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer
