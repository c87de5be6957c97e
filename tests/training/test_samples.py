"""Samples are cut or dropped as told, and nothing disappears without being counted."""

import pytest
import torch
from chat_tokenizers import chat_tokenizer

from eagle_hf.training import RowReader, SampleDataset, make_samples, most_frequent_tokens


def chat(answer, question="Hi"):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer("demo")


def exact(num_prompt, num_answer, **more):
    return {"prompt_ids": list(range(num_prompt)), "answer_ids": list(range(50, 50 + num_answer)), **more}


def test_samples_are_tensors_of_tokens_and_masks(tokenizer):
    dataset = make_samples([exact(3, 2), exact(1, 4)], tokenizer)
    assert len(dataset) == 2
    assert dataset.lengths == [5, 5]
    assert dataset[0]["input_ids"].tolist() == [0, 1, 2, 50, 51]
    assert dataset[1]["loss_mask"].tolist() == [0, 1, 1, 1, 1]
    assert dataset[1]["input_ids"].dtype == torch.long


def test_long_samples_are_cut_from_the_right(tokenizer):
    dataset = make_samples([exact(3, 4), exact(3, 1), exact(6, 9)], tokenizer, max_length=5)
    assert [sample["input_ids"].tolist() for sample in dataset] == [[0, 1, 2, 50, 51], [0, 1, 2, 50]]
    report = dataset.report
    assert (report.num_cut, report.num_cut_tokens, report.num_dropped, report.num_untrained) == (2, 12, 0, 1)
    assert (report.num_samples, report.num_tokens, report.num_trained_tokens, report.longest) == (2, 9, 3, 15)


def test_or_dropped(tokenizer):
    dataset = make_samples([exact(3, 4), exact(3, 1)], tokenizer, max_length=5, overflow="drop")
    assert [sample["input_ids"].tolist() for sample in dataset] == [[0, 1, 2, 50]]
    assert (dataset.report.num_cut, dataset.report.num_dropped) == (0, 1)


def test_the_report_can_be_read(tokenizer):
    text = str(make_samples([chat("Ok, " * 9), {}], tokenizer, max_length=9, max_malformed=0.5).report)
    assert "2 rows read, 1 of them malformed" in text
    assert "1 samples of 9 tokens" in text
    assert "1 cut" in text


def test_counts_of_trained_tokens_choose_the_draft_vocabulary(tokenizer):
    dataset = make_samples([exact(3, 2), exact(9, 1)], tokenizer)
    assert dataset.token_counts == {50: 2, 51: 1}
    assert most_frequent_tokens(dataset.token_counts, 2).tolist() == [50, 51]


def test_rows_of_all_kinds_may_be_mixed(tokenizer):
    rows = [chat("Ok"), exact(2, 2), {"text": "Ok"}, {"prompt": "Hi", "completion": "Ok"}]
    dataset = make_samples(rows, tokenizer)
    assert len(dataset) == 4
    assert dataset.report.rows.num_malformed == 0


def test_rows_that_the_template_refuses_are_malformed():
    tokenizer = chat_tokenizer("gemma_like")
    bad = chat("Ok")
    bad["messages"].insert(0, {"role": "system", "content": "Be good"})
    dataset = make_samples([chat("Ok")] * 99 + [bad], tokenizer)
    assert len(dataset) == 99
    assert dataset.report.rows.malformed == {"the chat template cannot take it": 1}
    assert "There is no system role" in dataset.report.rows.shown[0]
    with pytest.raises(ValueError, match="There is no system role"):
        make_samples([chat("Ok"), bad], tokenizer)


def test_turns_of_one_conversation_that_go_on_from_each_other_are_one_sample(tokenizer):
    first = exact(3, 2, row=7)
    second = {"prompt_ids": [0, 1, 2, 50, 51, 9], "answer_ids": [60], "row": 7}
    [sample] = make_samples([first, second], tokenizer)
    assert sample["input_ids"].tolist() == [0, 1, 2, 50, 51, 9, 60]
    assert sample["loss_mask"].tolist() == [0, 0, 0, 1, 1, 0, 1]
    other = second | {"prompt_ids": [0, 1, 2, 50, 9]}  # the template left something out
    assert len(make_samples([first, other], tokenizer)) == 2
    assert len(make_samples([first, second | {"row": 8}], tokenizer)) == 2
    without_rows = [{name: row[name] for name in ("prompt_ids", "answer_ids")} for row in (first, second)]
    assert len(make_samples(without_rows, tokenizer)) == 2


def test_joining_loses_no_trained_token(tokenizer):
    rows = [exact(3, 2, row=1), {"prompt_ids": [0, 1, 2, 50, 51, 9], "answer_ids": [60, 61], "row": 1}, chat("Ok")]
    dataset = make_samples(rows, tokenizer)
    separate = make_samples([row | {"row": i} for i, row in enumerate(rows)], tokenizer)
    assert dataset.token_counts == separate.token_counts


def test_data_of_another_target_is_refused(tokenizer):
    with pytest.raises(ValueError, match="holds token 51, and the target has 51 tokens"):
        make_samples([exact(3, 2)], tokenizer, vocab_size=51)
    assert make_samples([exact(3, 2)], tokenizer, vocab_size=52)


def test_nothing_left_to_train_on_is_an_error(tokenizer):
    with pytest.raises(ValueError, match=r"Nothing is left(.|\n)*1 dropped without a trained token"):
        make_samples([exact(9, 2)], tokenizer, max_length=5)


@pytest.mark.parametrize("options", [{"overflow": "wrap"}, {"max_length": 1}, {"max_malformed": 2}])
def test_options_out_of_range_are_refused(tokenizer, options):
    with pytest.raises(ValueError, match="must be|needs two"):
        make_samples([exact(3, 2)], tokenizer, **options)


def test_a_dataset_can_be_made_of_samples_at_hand():
    dataset = SampleDataset([{"input_ids": [1, 2], "loss_mask": [0, 1]}])
    assert (dataset.report.num_samples, dataset.report.longest) == (1, 2)
    assert isinstance(RowReader([]), RowReader)
