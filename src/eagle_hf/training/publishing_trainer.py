"""Publishes what a trainer of heads brings to the Hub: the head, its record and its card, and nothing else."""

from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..checkpoints.sources import HTTP_ERROR
from ..head.modeling_eagle import EagleDraftModel
from ..hub.card import create_model_card
from ..hub.publishing import name_of_target, push_head
from ..hub.training_facts import TrainingFacts
from .arguments import EagleTrainingArguments
from .run_facts import facts_of


logger = logging.get_logger(__name__)


class PublishingTrainer(Trainer):
    """
    A trainer whose heads remember how they were trained, wherever they are saved.

    Args:
        model ([`EagleDraftModel`]): The head. What it records of an earlier training stays in the new record.
        args ([`EagleTrainingArguments`]): Training arguments.
        kwargs: Further arguments of [`~transformers.Trainer`].

    `described` holds fields of [`~eagle_hf.hub.TrainingFacts`] that only the caller knows, such as `command` and
    `data`.

    Raises:
        `ValueError`: with `push_to_hub`, if the head's target has no name on the Hub.
    """

    def __init__(self, model: EagleDraftModel, args: EagleTrainingArguments, **kwargs: Any):
        if args.push_to_hub:  # before a repository is made, and hours before the first push
            name_of_target(model)
        super().__init__(model=model, args=args, **kwargs)
        self.described: dict[str, Any] = {}
        self._started_from = model.training_facts

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Writes the card of a head into the output folder; `push_to_hub` does it. Other arguments of
        [`~transformers.Trainer.create_model_card`] are ignored: they describe the data of ordinary models.
        """
        if not self.is_world_process_zero():
            return
        tags = [tags] if isinstance(tags, str) else tags or []
        name = model_name or str(self.args.hub_model_id or Path(str(self.args.output_dir)).name)
        self._put_record()
        card = create_model_card(self.model, name, license=license, language=language, tags=tags)
        card.save(Path(str(self.args.output_dir)) / "README.md")

    def describe(self, **known: Any) -> TrainingFacts:
        """
        Returns what this trainer has done, as it is recorded with the head.

        Args:
            known: Fields that the trainer does not know, such as `command` and `data`; as those in `described`.
        """
        facts = facts_of(self) | {"started_from": self._started_from}
        return TrainingFacts(**(facts | self.described | known))

    def _put_record(self) -> None:
        if self.state.global_step > 0:
            self.model.training_facts = self.describe()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Saves the head with the record of its training, and without the pickle of arguments, which holds paths."""
        self._put_record()
        super()._save(output_dir, state_dict)
        (Path(output_dir or str(self.args.output_dir)) / "training_args.bin").unlink(missing_ok=True)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Pushes the head with its card and record, and nothing else of the output folder.

        Args:
            commit_message, token, revision, private (*optional*): As in [`~transformers.Trainer.push_to_hub`].
            blocking (`bool`): Without effect: the commit is made when this returns.
            kwargs: Arguments of [`~eagle_hf.hub.create_model_card`].

        Raises:
            `ValueError`: if no `hub_model_id` is given, or the target has no name on the Hub.
        """
        if not self.is_world_process_zero():
            return None
        args = self.args
        if args.hub_model_id is None:
            raise ValueError("Give `hub_model_id`, the repository to push to, such as 'ORG/HEAD'.")
        kwargs.pop("model_name", None)
        self._put_record()
        return push_head(
            self.model,
            args.hub_model_id,
            commit_message=commit_message,
            token=token if token is not None else args.hub_token,
            revision=revision if revision is not None else args.hub_revision,
            private=private if private is not None else args.hub_private_repo,
            must_name_target=True,
            **({"training": self.model.training_facts} | kwargs),
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes the head of a checkpoint; its optimizer, and the paths in its state, stay here."""
        if self.args.hub_strategy == HubStrategy.END:
            return
        try:
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}")
        except (OSError, HTTP_ERROR) as error:
            logger.warning(f"The head of step {self.state.global_step} was not pushed: {error}. Training goes on.")
