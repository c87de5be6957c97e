"""
Finds out which hidden states a head reads: two conventions are in use, and nothing in a file names the one it follows.

```text
boundaries   0    1    2    3           entries of `hidden_states`; ours, vLLM's and speculators'
             |    |    |    |
          emb  [0]  [1]  [2]            outputs of layers, counted from 0: `eagle_config` of most trainers
```
"""

from typing import Any, NamedTuple


_KEY = "eagle_aux_hidden_state_layer_ids"


class FeatureLayers(NamedTuple):
    """
    Says which hidden states a head reads, and how that is known.

    Args:
        ids (`list[int]`, *optional*): Entries of `hidden_states`; `None` for the choice of the EAGLE authors.
        published (`list[int]`, *optional*): What the file says, where it was taken for outputs of layers.
        reason (`str`): Where this comes from.
    """

    ids: list[int] | None
    published: list[int] | None
    reason: str


def read_feature_layers(config: dict[str, Any]) -> FeatureLayers:
    """
    Reads the list in any layout. At the top level it means boundaries. In `eagle_config` it means outputs of layers if
    it starts with 1, as the first of the usual layers does there, and boundaries otherwise. That the last boundary of
    the target is in it means boundaries as well, which only shows once the target is known.
    """
    eagle_config = config.get("eagle_config") or {}
    if listed := config.get(_KEY):
        return FeatureLayers(list(listed), None, f"hidden states {listed}, as listed at the top level")
    if listed := eagle_config.get("layer_ids"):
        return FeatureLayers(list(listed), None, f"hidden states {listed}, as listed in `eagle_config.layer_ids`")
    if listed := eagle_config.get(_KEY):
        if listed[0] != 1:
            return FeatureLayers(list(listed), None, f"hidden states {listed}: `eagle_config` lists boundaries")
        return from_layer_outputs(list(listed))
    return FeatureLayers(None, None, "the usual hidden states, since no list is given")


def from_layer_outputs(outputs: list[int]) -> FeatureLayers:
    """Turns outputs of layers into entries of `hidden_states`: that of layer `i` is entry `i + 1`."""
    ids = [i + 1 for i in outputs]
    return FeatureLayers(ids, outputs, f"hidden states {ids}: outputs of layers {outputs} are listed")


def refuse_after_norm(ids: list[int] | None, engine: str) -> None:
    """
    Refuses -1 and other indices from the end, for engines that number what layers read and put out from 0.

    Raises:
        `ValueError`: naming the list.
    """
    if ids is not None and min(ids) < 0:
        raise ValueError(
            f"The head reads `hidden_states` {ids}, and {engine} numbers them from 0, the embedding, to the output of "
            "the last layer before the final norm. There is no number for -1, the state after it; other indices from "
            "the end can be given as positive ones: `EagleDraftModel.from_pretrained(..., feature_layer_ids=[...])`."
        )


def to_layer_outputs(ids: list[int]) -> list[int]:
    """
    Turns entries of `hidden_states` back, for engines that count outputs of layers.

    Raises:
        `ValueError`: if an id stands for the embedding or the state after the final norm, which no layer puts out.
    """
    if min(ids) < 1:
        raise ValueError(
            f"The head reads `hidden_states` {ids}. Engines that count outputs of layers cannot say 0 (the embedding) "
            "or -1 (after the final norm). Export it to a layout that lists hidden states, such as vLLM's."
        )
    return [i - 1 for i in ids]
