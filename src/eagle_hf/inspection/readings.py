"""Readings of a head: the same tensors, understood in ways that published heads are confused for one another."""

import copy
from dataclasses import dataclass, field
from typing import Any

from ..configuration_eagle import EagleConfig


@dataclass(frozen=True)
class Reading:
    """
    One way to read a head.

    Args:
        name (`str`): In words.
        changes (`dict`): Fields of [`EagleConfig`] that differ from the published reading.
        token_shift (`int`, *optional*, defaults to 0):
            -1 pairs each feature with the token of its own position instead of the one that follows. No option of a
            head sets it; it tells a head that was trained with other pairs than everybody uses.
    """

    name: str = "as published"
    changes: dict[str, Any] = field(default_factory=dict)
    token_shift: int = 0

    def config(self, published: EagleConfig) -> EagleConfig:
        """Returns the configuration of this reading."""
        fields = copy.deepcopy(published.to_dict()) | self.changes
        if "feature_layer_ids" in self.changes:  # what a repository said in another numbering must not overrule it
            fields.pop("published_feature_layer_ids", None)
        return EagleConfig.from_dict(fields)

    def alternatives(self, published: EagleConfig, num_layers: int) -> list["Reading"]:
        """
        Returns the readings that differ from this one in a single thing.

        Args:
            published ([`EagleConfig`]): The configuration as the repository has it.
            num_layers (`int`): Layers of the target.
        """
        config = self.config(published)
        found = [self._with(f"features from {ids}", feature_layer_ids=ids) for ids in _other_ids(config, num_layers)]
        if config.eagle_version == 3:
            recurrence = "before" if config.norm_output else "after"
            residual = "raw" if config.norm_before_residual else "normalised"
            found += [
                self._with(f"recurrence {recurrence} the norm", norm_output=not config.norm_output),
                self._with(f"residual of the {residual} feature", norm_before_residual=not config.norm_before_residual),
            ]
        if self.token_shift == 0:
            found.append(Reading(self._named("each feature with its own token"), self.changes, token_shift=-1))
        return found

    def _named(self, name: str) -> str:
        return name if self.name == "as published" else f"{self.name}, {name}"

    def _with(self, name: str, **changes: Any) -> "Reading":
        return Reading(self._named(name), self.changes | changes, self.token_shift)


def _other_ids(config: EagleConfig, num_layers: int) -> list[list[int]]:
    """Returns the feature layers of a configuration, counted from one further up or down."""
    if config.feature_layer_ids == [-1]:
        return [[num_layers]]  # the last layer's output before the target's final norm instead of after it
    ids = config.resolve_feature_layer_ids(num_layers)
    shifted = [[i + by for i in ids] for by in (1, -1)]
    return [ids for ids in shifted if min(ids) >= 0 and max(ids) <= num_layers]
