"""Names of a package that are imported when they are first read, so that a package costs no more than what is used."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]], packages: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """
    Returns the `__getattr__` and the `__dir__` of a package.

    Args:
        package (`str`): `__name__` of the package.
        homes (`Mapping[str, Sequence[str]]`): Names that the package offers, by the module that defines them.
        packages (`Sequence[str]`, *optional*): Packages within it that need no import of their own.

    Example:

    ```python
    __getattr__, __dir__ = lazy_names(__name__, {"drawing": ("draw_tree",), "text": ("draw_text",)})
    ```
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name in packages:
            return import_module(f"{package}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home_of[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*vars(import_module(package)), *home_of, *packages})

    return __getattr__, __dir__
