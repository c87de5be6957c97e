"""Training a head with `transformers` alone."""

from .answers import AnswerReport, AnswerSettings, write_answers
from .chat_text import ChatText
from .conversations import RowReader, RowReport
from .packing import PackedCollator, PackedDataset, PaddingCollator, best_fit
from .samples import DataReport, SampleDataset, make_samples
from .trainer import EagleTrainer, EagleTrainingArguments
from .training_time_test import TrainingTimeTestOutput, training_time_test_loss
from .vocabulary import most_frequent_tokens


__all__ = [
    "AnswerReport",
    "AnswerSettings",
    "ChatText",
    "DataReport",
    "EagleTrainer",
    "EagleTrainingArguments",
    "PackedCollator",
    "PackedDataset",
    "PaddingCollator",
    "RowReader",
    "RowReport",
    "SampleDataset",
    "TrainingTimeTestOutput",
    "best_fit",
    "make_samples",
    "most_frequent_tokens",
    "training_time_test_loss",
    "write_answers",
]
