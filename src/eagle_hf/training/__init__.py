"""Training a head with `transformers` alone."""

from ..data.chat_text import ChatText
from ..data.conversations import RowReader, RowReport
from .answers import AnswerReport, AnswerSettings, write_answers
from .arguments import EagleTrainingArguments
from .feature_store import FeatureStore, pad_features, write_features
from .frozen_target import FrozenTarget
from .losses import LOSSES
from .muon import MuonAndAdamW
from .new_head import new_head
from .objective import ObjectiveOutput, rows_that_draft, simulated_acceptance_length
from .objectives.eagle1 import feature_regression_loss
from .objectives.eagle3 import training_time_test_loss
from .packing import PackedCollator, PackedDataset, PaddingCollator, best_fit
from .samples import DataReport, SampleDataset, make_samples
from .trainer import EagleTrainer
from .vocabulary import coverage, cut_vocabulary, most_frequent_tokens


__all__ = [
    "LOSSES",
    "AnswerReport",
    "AnswerSettings",
    "ChatText",
    "DataReport",
    "EagleTrainer",
    "EagleTrainingArguments",
    "FeatureStore",
    "FrozenTarget",
    "MuonAndAdamW",
    "ObjectiveOutput",
    "PackedCollator",
    "PackedDataset",
    "PaddingCollator",
    "RowReader",
    "RowReport",
    "SampleDataset",
    "best_fit",
    "coverage",
    "cut_vocabulary",
    "feature_regression_loss",
    "make_samples",
    "most_frequent_tokens",
    "new_head",
    "pad_features",
    "rows_that_draft",
    "simulated_acceptance_length",
    "training_time_test_loss",
    "write_answers",
    "write_features",
]
