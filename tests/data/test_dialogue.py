"""Which turns are written again, and what later turns see of them."""

import pytest
from chat_tokenizers import chat_tokenizer

from eagle_hf.data.dialogue import Dialogue
from eagle_hf.training import ChatText


def messages(*roles):
    return [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)]


def begin(row, template="qwen_like", turns="all"):
    return Dialogue(0, row, ChatText(chat_tokenizer(template)), turns)


@pytest.mark.parametrize(
    ("roles", "turns"),
    [
        (["user", "assistant"], [1]),
        (["user"], [1]),
        (["system", "user", "assistant", "user", "assistant", "user"], [2, 4, 6]),
        (["assistant", "user", "assistant"], [2]),
        (["user", "assistant", "tool", "assistant", "user", "assistant"], [1]),
        (["user", "assistant", "user", "assistant", "tool", "assistant"], [1, 3]),
        (["assistant"], []),
    ],
)
def test_turns_that_are_written_again(roles, turns):
    assert begin({"messages": messages(*roles)}).turns == turns
    assert begin({"messages": messages(*roles)}, turns="first").turns == turns[:1]


def test_of_a_prompt_and_a_completion_only_the_completion_is_written_again():
    row = {"prompt": messages("user", "assistant", "user"), "completion": messages("assistant")}
    assert begin(row).turns == [3]
    assert begin({"prompt": row["prompt"]}).turns == [3]
    assert begin({"prompt": "Hi"}).turns == [0]


def test_given_answers_do_not_make_a_prompt_another():
    a, b = messages("user", "assistant", "user", "assistant"), messages("user", "assistant", "user", "assistant")
    b[1]["content"] = "other"
    assert begin({"messages": a}).prompt_key == begin({"messages": b}).prompt_key
    b[2]["content"] = "other"
    assert begin({"messages": a}).prompt_key != begin({"messages": b}).prompt_key


def test_thoughts_of_an_answer_are_gone_from_the_next_prompt():
    dialogue = begin({"messages": messages("user", "assistant", "user", "assistant")}, "thinking_like")
    tokenizer = dialogue.chat_text.tokenizer
    stop = tokenizer.eos_token_id
    prompt = dialogue.next_prompt(None)
    dialogue.take(prompt, [*tokenizer("<think>\nHm\n</think>\n\nOk").input_ids, stop], {stop})
    assert dialogue.lines[0]["messages"][1]["content"] == "<think>\nHm\n</think>\n\nOk"
    following = tokenizer.decode(dialogue.next_prompt(None))
    assert "Hm" not in following
    assert "assistant\nOk<|im_end|>" in following
    assert "assistant 1" not in following  # what was given


def test_a_dialogue_ends_with_an_answer_that_was_cut_or_a_prompt_without_room():
    row = {"messages": messages("user", "assistant", "user", "assistant")}
    cut = begin(row)
    cut.take(cut.next_prompt(None), [5, 6], {7})
    assert cut.next_prompt(None) is None
    assert not cut.lines[0]["finished"]
    assert begin(row).next_prompt(max_length=10) is None
    assert row["messages"][1]["content"] == "assistant 1"  # the row is left as it was
