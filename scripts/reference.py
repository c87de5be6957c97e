"""
Write docs/reference.md from the docstrings of all public names: `make reference`. A test compares the page with the
docstrings.
"""

import enum
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference.md"
MODULES = (
    "eagle_hf",
    "eagle_hf.loading",
    "eagle_hf.checkpoints",
    "eagle_hf.hub",
    "eagle_hf.training",
    "eagle_hf.evaluation",
    "eagle_hf.visualization",
    "eagle_hf.target.features",
    "eagle_hf.verification",
)
SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Example|Examples|Invariant):(.*)$")
ENTRY = re.compile(r"^(\*{0,2}[`\w][^:]*?(?:\([^()]*(?:\([^()]*\)[^()]*)*\))?):(?: (.*))?$")


def public_names(module: object) -> list[str]:
    """Names that a module declares, or the classes and functions that it defines."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    own = inspect.getmembers(module, lambda x: inspect.isclass(x) or inspect.isfunction(x))
    return [name for name, value in own if not name.startswith("_") and value.__module__ == module.__name__]


def members(cls: type) -> Iterator[tuple[str, object]]:
    """Public methods and properties with a docstring, that a class defines itself or takes from one beside it."""
    folder = cls.__module__.rpartition(".")[0]
    beside = [each for each in cls.__mro__ if each.__module__.rpartition(".")[0] == folder]
    for name, value in {name: value for each in reversed(beside) for name, value in vars(each).items()}.items():
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        is_shown = inspect.isfunction(function) or isinstance(function, property)
        if not name.startswith("_") and is_shown and function.__doc__:
            yield name, function


def signature(name: str, value: object) -> str:
    """How something is called, without annotations, which the text explains, and without what it only inherits."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return name
    documented = inspect.getdoc(value) or ""
    shown = []
    for parameter in parameters:
        inherited = len(parameters) > 20 and f"{parameter.name} (`" not in documented
        if parameter.name not in ("self", "cls") and not inherited:
            default = parameter.default
            if isinstance(default, enum.Enum) or " at 0x" in repr(default) or "factory" in repr(default):
                parameter = parameter.replace(default=inspect.Parameter.empty)
            shown.append(parameter.replace(annotation=inspect.Parameter.empty))
    try:
        text = str(inspect.Signature(shown))
    except ValueError:  # a default was left out before one that was not
        text = f"({', '.join(parameter.name for parameter in shown)})"
    return name + text


def to_markdown(docstring: str) -> str:
    """A docstring as Markdown: sections of entries become lists, everything else stays."""
    lines, section = [], ""
    for line in inspect.cleandoc(docstring).splitlines():
        if match := SECTION.match(line):
            section = match[1]
            lines += ["", f"**{match[1]}:**{match[2]}", ""]
        elif not line.startswith(" ") and line:
            section = ""
            lines.append(line)
        elif section in ("Args", "Raises"):
            text = line[4:]
            if (entry := ENTRY.match(text)) and not text.startswith(" "):
                lines.append(f"* {_code(entry[1])}: {entry[2] or ''}".rstrip())
            else:
                lines.append(f"  {text.strip()}" if text.strip() else "")
        elif section:
            lines.append(line[4:])
        else:
            lines.append(line)
    text = "\n".join(lines)
    text = re.sub(r"\[(`[^`\]]+`)\](?!\()", r"\1", text)  # the links of Hugging Face's own doc builder
    text = text.replace("`~", "`").replace("```python\n>>>", "```pycon\n>>>")
    text = text.replace("```python\n", "```py\n")  # no block of a page of its own: not run by the tests of the pages
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _code(entry: str) -> str:
    """`name (type)` with the name as code."""
    return re.sub(r"^(\*{0,2}\w+(?:, \w+)*)", r"`\1`", entry)


def write() -> str:
    """The page."""
    parts = [
        "# Reference",
        "Written by `make reference` from the docstrings. [Public names](api.md) gives the overview.",
    ]
    seen = set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        parts.append(f"## {module_name}")
        parts.append(to_markdown(module.__doc__ or ""))
        for name in public_names(module):
            value = getattr(module, name)
            if id(value) in seen or not callable(value):
                continue
            seen.add(id(value))
            parts.append(f"### {name}")
            call = textwrap.fill(signature(name, value), 100, subsequent_indent="    ", break_long_words=False)
            parts.append(f"```text\n{call}\n```")
            parts.append(to_markdown(value.__doc__ or ""))
            if inspect.isclass(value):
                for member, function in members(value):
                    call = signature(member, function) if inspect.isfunction(function) else member
                    parts.append(f"**`{call}`**")
                    documented = function.fget if isinstance(function, property) else function
                    parts.append(to_markdown(documented.__doc__))
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    PAGE.write_text(write(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
