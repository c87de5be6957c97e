"""Training a head with `transformers` alone."""

from .trainer import EagleTrainer, EagleTrainingArguments
from .training_time_test import TrainingTimeTestOutput, training_time_test_loss
from .vocabulary import most_frequent_tokens


__all__ = [
    "EagleTrainer",
    "EagleTrainingArguments",
    "TrainingTimeTestOutput",
    "most_frequent_tokens",
    "training_time_test_loss",
]
