"""Prompts reach the target in whatever form its chat template reads."""

import pytest
from chat_tokenizers import chat_tokenizer
from jinja2.exceptions import TemplateError

from eagle_hf.data.prompts import encode_prompt, reads_only_parts, render
from eagle_hf.training import ChatText


BODY = "{% if message.role == 'assistant' %}<|im_start|>assistant\n{% else %}<|im_start|>user\n{% endif %}"
TEXTS = {  # templates that read a content as text, as parts, or as either
    "text": "{{ message.content }}",
    "either": "{{ message.content if message.content is string else message.content[0].text }}",
    "parts": "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}",
    "parts, or failure": "{{ message.content[0]['text'] + '' }}",
}


def tokenizer_that_reads(kind):
    tokenizer = chat_tokenizer("qwen_like")
    tokenizer.chat_template = (
        "{% for message in messages %}" + BODY + TEXTS[kind] + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


@pytest.mark.parametrize("kind", TEXTS)
def test_the_prompt_is_in_what_the_target_reads(kind):
    tokenizer = tokenizer_that_reads(kind)
    assert reads_only_parts(tokenizer) == kind.startswith("parts")
    text = "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n"
    assert render(tokenizer, [{"role": "user", "content": "Hi there"}]) == text
    assert tokenizer.decode(encode_prompt(tokenizer, "Hi there")[0]) == text


@pytest.mark.parametrize("kind", TEXTS)
def test_training_reads_it_in_the_same_form(kind):
    chat = ChatText(tokenizer_that_reads(kind))
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ok!"}]}
    (sample,) = chat(row)
    trained = [token for token, mask in zip(sample["input_ids"], sample["loss_mask"], strict=True) if mask]
    assert chat.tokenizer.decode(trained) == "Ok!<|im_end|>"


def test_a_template_that_refuses_is_let_speak():
    tokenizer = chat_tokenizer("qwen_like")
    tokenizer.chat_template = "{{ raise_exception('only with tools') }}"
    with pytest.raises(TemplateError, match="only with tools"):
        render(tokenizer, [{"role": "user", "content": "Hi"}])
