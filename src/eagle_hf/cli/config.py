"""Options from a YAML file."""

from collections.abc import Sequence
from pathlib import Path

import yaml


def with_config(argv: Sequence[str]) -> list[str]:
    """
    Puts the options of `--config FILE` before those of the command line, so that the latter win.

    ```yaml
    target: org/model
    num_unrolls: 5
    feature_layer_ids: [2, 8, 13]
    ```

    Raises:
        `OSError`: if the file is missing or no YAML mapping.
    """
    argv = list(argv)
    if "--config" not in argv[:-1]:
        return argv
    path = Path(argv[argv.index("--config") + 1])
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise OSError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise OSError(f"{path} holds a {type(content).__name__}, expected a mapping of options to values.")
    options = []
    for name, value in content.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            options += [f"--{name}", *([] if value is True else map(str, values))]
    return [*argv[:1], *options, *argv[1:]]
