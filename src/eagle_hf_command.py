"""
Entry point of the command `eagle-hf`. It imports the modules of the command line before their package, which would
import `torch` and `transformers`: help and misspelt options are answered at once, and the package follows as soon as a
command runs.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence


PACKAGE = "eagle_hf"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status."""
    import_package = _put_off()
    from eagle_hf.cli.main import main as run

    return run(argv, before=import_package)


def _put_off() -> Callable[[], None]:
    """Makes the modules of the package importable without the package, and returns what imports it after all."""
    package = sys.modules.get(PACKAGE)
    if package is None and (spec := importlib.util.find_spec(PACKAGE)) is not None:
        package = sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    spec = getattr(package, "__spec__", None)
    if package is None or spec is None or spec.loader is None or hasattr(package, "__all__"):
        return lambda: None
    loader = spec.loader
    return lambda: loader.exec_module(package)


if __name__ == "__main__":
    sys.exit(main())
