from __future__ import annotations

import pytest
from tests.helpers.chat import WITHOUT_SYSTEM, with_template
from tests.helpers.harness_tasks import character_tokenizer
from tokenizers import processors

from ropewalk.errors import InputError
from ropewalk.evaluate.prompt_encoder import PromptEncoder, render_chat


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of single characters that begins every text with `<end>`, unless told not to."""
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<end>"})
    bos = [("<end>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=bos)
    return with_template(tokenizer)


def test_without_chat_a_prompt_is_plain_text(tokenizer):
    encoder = PromptEncoder(tokenizer)
    assert encoder.encode(" What? ") == tokenizer(" What? ")["input_ids"]
    assert encoder.encode("What?", "It is") == tokenizer("What? It is")["input_ids"]
    assert encoder.encode("What?\n", "It is") == tokenizer("What?\nIt is")["input_ids"]
    said = [("user", "Hi"), ("assistant", "Yes"), ("user", "?")]
    messages = [{"role": role, "content": content} for role, content in said]
    plain = "User: Hi\n\nAssistant: Yes\n\nUser: ?\n\nAssistant:"
    assert encoder.encode_conversation(messages) == tokenizer(plain)["input_ids"]
    assert encoder.count_template_tokens() == 0


def test_a_chat_has_the_turns_of_its_template_and_one_token_at_the_beginning(tokenizer):
    encoder = PromptEncoder(tokenizer, chat=True)
    assert tokenizer.decode(encoder.encode(" What? ")) == "<end>[user]What?[end][assistant]"
    assert tokenizer.decode(encoder.encode("What?\n", "It is")) == "<end>[user]What?[end][assistant]It is"
    # [user], [end] and [assistant] in characters, without the space between text and answer
    assert encoder.count_template_tokens() == 6 + 5 + 11 - 1


def test_the_ids_are_those_of_transformers(tokenizer):
    encoder = PromptEncoder(tokenizer, chat=True)
    messages = [{"role": "user", "content": "Which number was it?"}]
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert encoder.encode(messages[0]["content"]) == theirs
    messages.append({"role": "assistant", "content": "The number is"})
    theirs = tokenizer.apply_chat_template(messages, continue_final_message=True)["input_ids"]
    assert encoder.encode(messages[0]["content"], "The number is") == theirs


def test_a_system_message_that_the_template_refuses_is_left_out(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert render_chat(tokenizer, messages) == "<end>[system]Be brief.[end][user]Hi[end][assistant]"
    assert render_chat(with_template(tokenizer, WITHOUT_SYSTEM), messages) == "<end>[user]Hi[end][assistant]"


@pytest.mark.parametrize("template", ["{{ raise_exception('only tools') }}", "{% if %}", "nothing of the message"])
def test_a_template_that_fails_is_one_line(tokenizer, template):
    encoder = PromptEncoder(with_template(tokenizer, template), chat=True)
    with pytest.raises(InputError, match=r"^chat: got .a chat template that fails \([^\n]*\).; expected off[^\n]*$"):
        encoder.encode("What?", "It is")
