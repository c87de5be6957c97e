"""
The table of architectures in docs/architectures.md, from trying each of them.
`python tests/generation/architectures_table.py` writes it.
"""

import re
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))
import transformers  # noqa: E402
from architecture_verdicts import CHAINS, RECURRENT, REFUSED, TREES, verdict  # noqa: E402
from every_decoder import NotBuiltError, decoders, tiny_decoder  # noqa: E402
from transformers import DynamicCache, PreTrainedModel  # noqa: E402


PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
BEGIN, END = "<!-- architectures: written by tests/generation/architectures_table.py -->", "<!-- /architectures -->"
NOT_TRIED = "not tried"
LAYERS = {
    "DynamicSlidingWindowLayer": "sliding or chunked windows",
    "DynamicIndexedLayer": "sparse attention with an indexer",
    "MiniMaxM3VLSparseCacheLayer": "blocks of keys that an indexer chooses",
    "DummyLayer": "layers without keys of their own",
    "LinearAttentionLayer": "layers with a convolution or a recurrent state",
    "LinearAttentionAndFullAttentionLayer": "attention and a recurrent state in the same layer",
    "LinearAttentionAndSlidingWindowAttentionLayer": "windows and a convolution in the same layer",
}


def remark_on(target: PreTrainedModel) -> str:
    """What is particular about a target that works."""
    kinds = list(dict.fromkeys(type(layer).__name__ for layer in DynamicCache(config=target.config).layers))
    remarks = [LAYERS[kind] for kind in kinds if kind in LAYERS]
    if not target._supports_sdpa:
        remarks.append("eager attention only")
    return "; ".join(remarks)


def short(reason: str) -> str:
    """The reason of a refusal without what differs from machine to machine."""
    _, _, detail = reason.partition("cannot verify drafts: ")
    reason = detail.rpartition("; ")[2] or re.split(r", (?:which|so that)|: ", reason)[0]
    reason = re.sub(
        r" (?:are off by|\((?:The|The expanded|Expected) size).*", lambda m: " differ" if "off" in m[0] else "", reason
    )
    return re.sub(r"\. Generate without.*", "", reason).replace("|", " ")


def row(name: str) -> tuple[str, str]:
    """Verdict and remark."""
    try:
        target = tiny_decoder(name)
    except NotBuiltError as error:
        return NOT_TRIED, str(error).partition(" (")[0]
    verifies, reason = verdict(target)
    return verifies, short(reason) if verifies == REFUSED else remark_on(target)


def render(page: str) -> str:
    """The page with its table made anew."""
    rows = {name: row(name) for name in decoders()}
    counts = {
        kind: sum(verifies == kind for verifies, _ in rows.values()) for kind in (TREES, CHAINS, RECURRENT, REFUSED)
    }
    head = [
        f"Made with transformers {transformers.__version__}: "
        + "; ".join(f"{kind} {count}" for kind, count in counts.items())
        + ".",
        "",
        "| model type | verifies | remark |",
        "|---|---|---|",
    ]
    lines = [f"| `{name}` | {verifies} | {remark} |" for name, (verifies, remark) in rows.items()]
    table = "\n".join([BEGIN, *head, *lines, END])
    return re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda match: table, page, flags=re.DOTALL)


def version(page: str) -> str:
    """The version of transformers that the table was made with."""
    return re.search(r"Made with transformers (\S+):", page)[1]


def table(page: str) -> dict[str, str]:
    """Verdict of every model type, as the page has it."""
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", page, flags=re.MULTILINE))


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    PAGE.write_text(render(PAGE.read_text()))
