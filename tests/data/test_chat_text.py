"""Only what the assistant generates is trained, exactly, with templates of many families."""

import re

import pytest
from chat_tokenizers import chat_tokenizer, stop_ids
from transformers import PreTrainedTokenizerFast

from eagle_hf.data.chat_text import NotRenderable
from eagle_hf.training import ChatText


SINGLE = [("user", "Hi"), ("assistant", "Ok!")]
MULTI = [("user", "Hi"), ("assistant", "Ok!\n"), ("user", "Hi!"), ("assistant", "O\n\nk")]

# Tokens that are trained in `SINGLE` and `MULTI`, per sample.
TRAINED = {
    "llama3_like": ([["Ok", "!", "<|eot_id|>"]], [["Ok", "!", "<|eot_id|>", "O", "\n\n", "k", "<|eot_id|>"]]),
    "qwen_like": ([["Ok", "!", "<|im_end|>"]], [["Ok", "!\n", "<|im_end|>", "O", "\n\n", "k", "<|im_end|>"]]),
    "qwen_like_with_generation_blocks": (
        [["Ok", "!", "<|im_end|>"]],
        [["Ok", "!\n", "<|im_end|>", "O", "\n\n", "k", "<|im_end|>"]],
    ),
    "mistral_like": ([[" Ok", "!", "</s>"]], [[" Ok", "!\n", "</s>", " O", "\n\n", "k", "</s>"]]),
    "gemma_like": ([["Ok", "!", "<end_of_turn>"]], [["Ok", "!", "<end_of_turn>", "O", "\n\n", "k", "<end_of_turn>"]]),
    "thinking_like": (
        [["<think>", "\n\n", "</think>", "\n\n", "Ok", "!", "<|im_end|>"]],
        [
            ["<think>", "\n\n", "</think>", "\n\n", "Ok", "!\n", "<|im_end|>"],
            ["<think>", "\n\n", "</think>", "\n\n", "O", "\n\n", "k", "<|im_end|>"],
        ],
    ),
    "opened_thinking_like": ([["Ok", "!", "<|end|>"]], [["Ok", "!\n", "<|end|>", "O", "\n\n", "k", "<|end|>"]]),
    "phi_like": ([["Ok", "!", "<|end|>"]], [["Ok", "!\n", "<|end|>", "O", "\n\n", "k", "<|end|>"]]),
}


def row(turns, **more):
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def trained_tokens(tokenizer, sample):
    assert len(sample["input_ids"]) == len(sample["loss_mask"])
    pairs = zip(sample["input_ids"], sample["loss_mask"], strict=True)
    return [tokenizer.decode([token]) for token, mask in pairs if mask]


def text_for(name, **options):
    tokenizer = chat_tokenizer(name)
    return ChatText(tokenizer, stop_token_ids=stop_ids(name, tokenizer), **options)


@pytest.mark.parametrize("number", [0, 1], ids=["single", "multi"])
@pytest.mark.parametrize("name", TRAINED)
def test_trained_are_the_answers_and_their_end_token_for_token(name, number):
    chat_text = text_for(name)
    samples = chat_text(row([SINGLE, MULTI][number]))
    assert [trained_tokens(chat_text.tokenizer, sample) for sample in samples] == TRAINED[name][number]


@pytest.mark.parametrize("name", [*TRAINED, "demo"])
def test_every_sample_is_the_text_the_template_renders_up_to_its_last_answer(name):
    chat_text = text_for(name)
    tokenizer, data = chat_text.tokenizer, row(MULTI)
    served = [tokenizer.apply_chat_template(data["messages"][:end], tokenize=True, return_dict=False) for end in (2, 4)]
    samples = chat_text(data)
    assert [sample["input_ids"] for sample in samples] == served[-len(samples) :]


@pytest.mark.parametrize("name", ["llama3_like", "qwen_like", "gemma_like", "thinking_like", "mistral_like", "demo"])
def test_untrained_before_an_answer_is_exactly_the_prompt_that_is_served(name):
    chat_text = text_for(name)
    messages = row(SINGLE)["messages"]
    prompt = chat_text.tokenizer.apply_chat_template(
        messages[:1], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    sample = chat_text(row(SINGLE))[0]
    assert sample["input_ids"][: sample["loss_mask"].index(1)] == prompt


def test_the_demo_template_trains_the_answer_and_eos():
    chat_text = text_for("demo")
    samples = chat_text(row(MULTI))
    assert len(samples) == 1
    ids = [t for t, mask in zip(samples[0]["input_ids"], samples[0]["loss_mask"], strict=True) if mask]
    assert chat_text.tokenizer.decode(ids) == "Ok!\n<|eos|>O\n\nk<|eos|>"


@pytest.mark.parametrize("name", ["llama3_like", "qwen_like", "thinking_like", "gemma_like"])
def test_a_mask_by_pattern_would_differ(name):
    """Negative control: everything between a header and the next, as masks by regular expression take it."""
    chat_text = text_for(name)
    tokenizer = chat_text.tokenizer
    text = tokenizer.apply_chat_template(row(MULTI)["messages"], tokenize=False)
    header = {"llama3_like": r"assistant<\|end_header_id\|>", "gemma_like": "model"}.get(name, "assistant")
    found = re.findall(header + r"(.*?)(?:<\|start_header_id\|>|<\|im_start\|>|<start_of_turn>|$)", text, re.DOTALL)
    naive = [tokenizer.decode([token]) for part in found for token in tokenizer(part).input_ids]
    assert naive != [token for part in TRAINED[name][1] for token in part]


def test_thoughts_are_trained_in_the_turn_that_thinks_them_and_gone_from_later_prompts():
    chat_text = text_for("thinking_like")
    data = row(MULTI)
    data["messages"][1]["reasoning_content"] = "Hm"
    data["messages"][3]["content"] = "<think>Oh</think>Ok"
    first, second = chat_text(data)
    decode = chat_text.tokenizer.decode
    assert "".join(trained_tokens(chat_text.tokenizer, first)) == "<think>\nHm\n</think>\n\nOk!\n<|im_end|>"
    assert "".join(trained_tokens(chat_text.tokenizer, second)) == "<think>\nOh\n</think>\n\nOk<|im_end|>"
    assert "Hm" not in decode(second["input_ids"])
    assert "Ok!" in decode(second["input_ids"])


def test_variables_of_the_template_decide_what_is_given():
    chat_text = text_for("thinking_like", chat_template_kwargs={"enable_thinking": False})
    [sample] = chat_text(row(SINGLE))
    assert trained_tokens(chat_text.tokenizer, sample) == ["Ok", "!", "<|im_end|>"]
    [sample] = chat_text(row(SINGLE, chat_template_kwargs={"enable_thinking": True}))
    assert trained_tokens(chat_text.tokenizer, sample)[0] == "<think>"


def test_a_turn_that_begins_like_the_opened_block_is_trained_whole():
    """The prompt ends with `<think>`; that an answer begins with `<` as well is chance."""
    chat_text = text_for("opened_thinking_like")
    [sample] = chat_text(row([("user", "Hi"), ("assistant", "<the")]))
    assert trained_tokens(chat_text.tokenizer, sample) == ["<", "t", "h", "e", "<|end|>"]


def test_tokens_across_the_border_of_a_turn_are_not_trained():
    chat_text = text_for("llama3_like")
    chat_text.tokenizer.chat_template = chat_text.tokenizer.chat_template.replace(
        '_id|>\\n\\n" ~ message.content | trim', '_id|>\\n" ~ message.content'
    ).replace('<|end_header_id|>\\n\\n" -}}', '<|end_header_id|>\\n" -}}')
    [sample] = chat_text(row([("user", "Hi"), ("assistant", "\nOk")]))
    assert "\n\n" in [chat_text.tokenizer.decode([token]) for token in sample["input_ids"]]  # half of it is header
    assert trained_tokens(chat_text.tokenizer, sample) == ["Ok", "<|eot_id|>"]


def test_a_system_message_in_the_last_question_makes_a_sample_of_every_turn():
    chat_text = text_for("mistral_like")
    samples = chat_text(row([("system", "S"), *MULTI]))
    assert [trained_tokens(chat_text.tokenizer, sample) for sample in samples] == [
        [" Ok", "!\n", "</s>"],
        [" O", "\n\n", "k", "</s>"],
    ]
    texts = [chat_text.tokenizer.decode(sample["input_ids"]) for sample in samples]
    assert texts == [
        "<s>[INST] S\n\nHi[/INST] Ok!\n</s>",
        "<s>[INST] Hi[/INST] Ok!\n</s>[INST] S\n\nHi![/INST] O\n\nk</s>",
    ]


def test_without_the_targets_stop_tokens_the_text_after_them_is_not_told_apart():
    """Negative control for `stop_token_ids`: this template writes EOS after what the target generates."""
    tokenizer = chat_tokenizer("phi_like")
    [sample] = ChatText(tokenizer)(row(SINGLE))
    assert trained_tokens(tokenizer, sample) == ["Ok", "!", "<|end|>", "<|endoftext|>"]


def test_only_the_last_turn_on_request():
    chat_text = text_for("qwen_like", last_turn_only=True)
    [sample] = chat_text(row(MULTI))
    assert trained_tokens(chat_text.tokenizer, sample) == ["O", "\n\n", "k", "<|im_end|>"]


def test_what_the_assistant_opens_with_is_given_and_what_follows_the_last_answer_is_left_out():
    chat_text = text_for("qwen_like")
    [sample] = chat_text(row([("assistant", "Hi"), *SINGLE, ("user", "Hi")]))
    assert trained_tokens(chat_text.tokenizer, sample) == ["Ok", "!", "<|im_end|>"]
    assert chat_text.tokenizer.decode(sample["input_ids"]).endswith("Ok!<|im_end|>\n")


def test_tools_and_calls_reach_the_template():
    chat_text = text_for("qwen_like")
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    messages = [
        {"role": "user", "content": "Hi"},
        call,
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "Ok"},
    ]
    [sample] = chat_text({"messages": messages, "tools": [{"name": "f"}]})
    trained = "".join(trained_tokens(chat_text.tokenizer, sample))
    assert trained == "<tool_call>f</tool_call><|im_end|>Ok<|im_end|>"
    assert 'Tools: [{"name": "f"}]' in chat_text.tokenizer.decode(sample["input_ids"])


@pytest.mark.parametrize("name", ["qwen_like", "demo", "gemma_like"])
def test_the_end_of_an_unfinished_answer_is_not_trained(name):
    chat_text = text_for(name)
    [sample] = chat_text(row(MULTI, finished=False))
    assert "".join(trained_tokens(chat_text.tokenizer, sample)).endswith("O\n\nk")


def test_messages_as_prompt_and_completion_train_the_completion_only():
    chat_text = text_for("qwen_like")
    messages = row(MULTI)["messages"]
    [sample] = chat_text({"prompt": messages[:3], "completion": messages[3:]})
    assert trained_tokens(chat_text.tokenizer, sample) == ["O", "\n\n", "k", "<|im_end|>"]


def test_completions_are_trained_with_eos_and_prompts_are_not():
    tokenizer = chat_tokenizer("llama3_like")
    tokenizer.chat_template = None  # none is needed
    [sample] = ChatText(tokenizer)({"prompt": "Hi", "completion": "Ok"})
    assert trained_tokens(tokenizer, sample) == ["Ok", "<|eot_id|>"]
    [sample] = ChatText(tokenizer)(
        {"prompt": "Hi\n", "completion": "\nOk<|eot_id|>"}
    )  # "\n\n" is one token; EOS is there
    assert trained_tokens(tokenizer, sample) == ["Ok", "<|eot_id|>"]
    [sample] = ChatText(tokenizer)({"prompt": "Hi", "completion": "Ok", "finished": False})
    assert trained_tokens(tokenizer, sample) == ["Ok"]


def test_text_is_trained_whole_and_has_one_bos():
    tokenizer = chat_tokenizer("demo")
    chat_text = ChatText(tokenizer)
    for text in ("Ok!", "<|bos|>Ok!"):
        [sample] = chat_text({"text": text})
        ids = sample["input_ids"]
        assert ids.count(tokenizer.bos_token_id) <= 1
        assert tokenizer.decode([t for t, m in zip(ids, sample["loss_mask"], strict=True) if m]) == "Ok!"


def test_a_tokenizer_that_adds_bos_adds_none_to_text_that_has_one():
    from tokenizers.processors import TemplateProcessing

    tokenizer = chat_tokenizer("llama3_like")
    bos = ("<|begin_of_text|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    chat_text = ChatText(tokenizer)
    for data in ({"text": "Ok"}, {"text": "<|begin_of_text|>Ok"}, row(SINGLE)):
        [sample] = chat_text(data)
        assert sample["input_ids"].count(bos[1]) == 1
        assert sample["input_ids"][0] == bos[1]
        assert sample["loss_mask"][0] == 0
    assert chat_text({"text": "<|begin_of_text|>Ok"})[0] == chat_text({"text": "Ok"})[0]


def test_exact_tokens_are_taken_as_they_are():
    [sample] = ChatText(chat_tokenizer("qwen_like"))({"prompt_ids": [1, 2], "answer_ids": [3], "messages": []})
    assert sample == {"input_ids": [1, 2, 3], "loss_mask": [0, 0, 1]}


def test_what_the_template_refuses_is_a_fault_of_the_row():
    with pytest.raises(NotRenderable, match="There is no system role"):
        text_for("gemma_like")(row([("system", "S"), *SINGLE]))
    assert text_for("gemma_like")(row(SINGLE))


def test_a_template_that_cannot_mark_answers_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"add_generation_prompt.*`prompt` and `completion`"):
        text_for("header_always")(row(SINGLE))


def test_no_template_is_refused_with_a_way_out():
    tokenizer = chat_tokenizer("qwen_like")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"no chat template.*`prompt` and `completion`"):
        ChatText(tokenizer)(row(SINGLE))


def test_a_template_that_drops_answers_is_refused():
    tokenizer = chat_tokenizer("qwen_like")
    tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="cannot be told which tokens"):
        ChatText(tokenizer)(row(SINGLE))


def test_a_tokenizer_without_offsets_is_refused(monkeypatch):
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", property(lambda self: False))
    with pytest.raises(ValueError, match="Load a fast one"):
        ChatText(chat_tokenizer("qwen_like"))
