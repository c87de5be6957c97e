"""Rotary embeddings in configurations: how `transformers` 5 spells them, and how everybody did before."""

from typing import Any


def read_rope(config: dict[str, Any]) -> dict[str, Any]:
    """
    Returns the rotary embedding of the head, in the form of `transformers` 5. It is the head's own: theta is 10000
    unless the head's configuration says otherwise, whatever the target uses.
    """
    new = config.get("rope_parameters") or {}
    if new and all(isinstance(value, dict) for value in new.values()):  # one for each type of layer; a head has one
        new = new.get("sliding_attention") or next(iter(new.values()))
    parameters = dict(new or config.get("rope_scaling") or {})
    old_name = parameters.pop("type", "default")
    parameters.setdefault("rope_type", old_name)
    parameters.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    if parameters["rope_type"] == "mrope" or "mrope_section" in parameters:
        # Positions in time, height and width: all the same for text, which is what the head gets.
        parameters = {name: value for name, value in parameters.items() if not name.startswith("mrope_")}
        parameters["rope_type"] = parameters["rope_type"].replace("mrope", "default")
    return parameters


def write_rope(parameters: dict[str, Any] | None) -> dict[str, Any]:
    """
    Returns both spellings, since engines read the one or the other: `rope_parameters`, and `rope_theta` /
    `rope_scaling`.
    """
    parameters = dict(parameters or {"rope_type": "default", "rope_theta": 10000.0})
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    is_scaled = scaling.get("rope_type", "default") != "default"
    return {
        "rope_parameters": parameters,
        "rope_theta": parameters.get("rope_theta", 10000.0),
        "rope_scaling": scaling if is_scaled else None,
    }
