"""Tokenizers without offsets, vocabularies of another size than the tokenizer's, all kinds of positions."""

import pytest
import torch
from architectures import tiny_target
from chat_tokenizers import chat_tokenizer
from doubles import letter_tokenizer
from every_decoder import tiny_decoder
from transformers import PreTrainedTokenizerFast

from eagle_hf.training import (
    AnswerSettings,
    EagleTrainer,
    EagleTrainingArguments,
    PaddingCollator,
    SampleDataset,
    make_samples,
    new_head,
    write_answers,
)


@pytest.fixture
def slow(monkeypatch):
    """A tokenizer that does not tell where its tokens stand in the text."""
    call = PreTrainedTokenizerFast._encode_plus

    def without_offsets(self, *args, return_offsets_mapping=False, **kwargs):
        if return_offsets_mapping:
            raise NotImplementedError("return_offset_mapping is not available when using Python tokenizers.")
        return call(self, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", property(lambda self: False))
    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", without_offsets)


def test_a_slow_tokenizer_prepares_answers_and_trains_on_them(slow, tmp_path):
    target, tokenizer = tiny_target("llama"), letter_tokenizer()
    output = tmp_path / "answers.jsonl"
    rows = [{"prompt": "abcdefgh", "completion": "hg"}, {"prompt": "bcdef", "completion": "x"}]
    report = write_answers(target, tokenizer, rows, output, AnswerSettings(max_new_tokens=6, batch_size=2))
    dataset = make_samples(str(output), tokenizer)
    assert dataset.report.num_trained_tokens == report.num_tokens > 0


def test_rows_that_need_offsets_say_so(slow):
    with pytest.raises(ValueError, match="does not tell where in the text.*`prompt_ids` and `answer_ids`"):
        make_samples([{"prompt": "ab", "completion": "cd"}], letter_tokenizer())
    with pytest.raises(ValueError, match="does not tell where in the text"):
        make_samples([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
                     chat_tokenizer("qwen_like"))  # fmt: skip


def learns(tmp_path, target, eagle_version, ids, **fields):
    if eagle_version == 3:
        fields["feature_layer_ids"] = [0, 1, 2]
    head = new_head(target, eagle_version=eagle_version, **fields)
    samples = SampleDataset({"input_ids": row, "loss_mask": [0, 0] + [1] * (len(row) - 2)} for row in ids)
    arguments = EagleTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", save_strategy="no", num_unrolls=2, max_steps=12,
        disable_tqdm=True, per_device_train_batch_size=len(ids), learning_rate=1e-2, feature_noise=0.0, logging_steps=1,
    )  # fmt: skip
    trainer = EagleTrainer(head, target, arguments, train_dataset=samples, data_collator=PaddingCollator(0))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    prompt = torch.tensor([ids[0][:4]])
    call = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    head.eval().generation_config.draft_tree = "dynamic"
    assert torch.equal(target.generate(prompt, **call), target.generate(prompt, assistant_model=head, **call))
    return head


def texts(vocab_size):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in (9, 12, 7)]


@pytest.mark.parametrize("eagle_version", [1, 3])
@pytest.mark.parametrize(("size", "tie"), [(101, False), (101, True), (64, False)])
def test_tokens_may_be_added_to_a_target_or_taken_away(tmp_path, size, tie, eagle_version):
    target = tiny_target("llama-tied" if tie else "llama")
    target.resize_token_embeddings(size, mean_resizing=False)
    head = learns(tmp_path, target, eagle_version, [[*texts(size)[0], size - 1], *texts(size)[1:]])
    assert head.config.vocab_size == size


def test_a_target_may_have_more_rows_than_its_tokenizer_has_tokens(tmp_path):
    target = tiny_target("llama")
    target.resize_token_embeddings(97, pad_to_multiple_of=32, mean_resizing=False)
    head = learns(tmp_path, target, 3, texts(97))
    assert head.config.vocab_size == head.lm_head.weight.shape[0] == 128


@pytest.mark.parametrize("eagle_version", [1, 3])
@pytest.mark.parametrize("positions", ["learned", "biases by distance", "none in some layers"])
def test_heads_learn_from_targets_with_all_kinds_of_positions(tmp_path, positions, eagle_version):
    target = {
        "learned": lambda: tiny_target("gpt2-learned-positions"),
        "biases by distance": lambda: tiny_decoder("bloom"),
        "none in some layers": lambda: tiny_target("smollm3"),
    }[positions]()
    learns(tmp_path, target, eagle_version, texts(90))
