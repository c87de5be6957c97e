"""Generated text that shows which tokens were drafted."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from .tokens import CONTROL_PICTURES, Kind, token_kinds, token_pieces


if TYPE_CHECKING:
    from rich.text import Text


NO_MATH = "tex2jax_ignore mathjax_ignore"  # Jupyter would set what stands between two dollar signs as a formula
STYLES: dict[Kind | None, str] = {None: "", "first": "italic", "drafted": "green underline", "bonus": "bold"}
CSS: dict[Kind, str] = {
    "first": "font-style:italic",
    "drafted": "background:#d3f2d9;color:#14301b;text-decoration:underline;text-decoration-color:#1a7f37",
    "bonus": "font-weight:bold",
}
MEANING: dict[Kind, str] = {
    "drafted": "drafted, accepted by the target",
    "bonus": "the target's own token after the drafts",
    "first": "from the prompt's forward",
}


@dataclass(frozen=True)
class Span:
    """
    Neighbouring tokens of one step that came from the same place.

    Args:
        text (`str`): Their text.
        kind (`str`, *optional*): `"first"`, `"drafted"` or `"bonus"`; `None` where it is not known.
        step (`int`): Which verification added them; 0 is the prompt's forward.
        tokens (`list[int]`): Their ids.
    """

    text: str
    kind: Kind | None
    step: int
    tokens: list[int]


@dataclass(frozen=True, repr=False)
class TextPicture:
    """
    Shows itself in notebooks, and in terminals by `rich`'s `print`. `str()` marks drafted
    tokens by angle brackets instead: `The‹ quick brown› fox`.

    Args:
        spans (`list[Span]`): The text, in order.
    """

    spans: list[Span]

    @classmethod
    def from_kinds(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        tokens: Sequence[int],
        kinds: Sequence[tuple[Kind | None, int]],
        skip_special_tokens: bool = False,
    ) -> "TextPicture":
        """Returns a picture of tokens, given per token where it came from and in which step."""
        pieces = token_pieces(tokenizer, tokens, skip_special_tokens)
        spans = []
        for (kind, step), group in groupby(zip(kinds, pieces, tokens, strict=True), key=lambda item: item[0]):
            members = list(group)
            spans.append(Span("".join(piece for _, piece, _ in members), kind, step, [token for *_, token in members]))
        return cls(spans)

    @property
    def plain(self) -> str:
        """The text alone."""
        return "".join(span.text for span in self.spans)

    def __str__(self) -> str:
        return "".join(f"‹{span.text}›" if span.kind == "drafted" else span.text for span in self.spans)

    __repr__ = __str__

    def __rich__(self) -> "Text":
        from rich.text import Text

        text = Text()
        for span in self.spans:
            text.append(span.text.translate(CONTROL_PICTURES), style=STYLES[span.kind])
        return text

    def to_html(self, legend: bool = True) -> str:
        """
        Returns a `div`, with all styles in place. Markup in the text is escaped; paragraphs run in the direction of
        their script.

        Args:
            legend (`bool`, defaults to `True`): Whether to say below what the styles mean.
        """
        body = "".join(map(_span_html, self.spans))
        kinds = {span.kind for span in self.spans}
        signs = " · ".join(
            f'<span style="{CSS[kind]}">{meaning}</span>' for kind, meaning in MEANING.items() if kind in kinds
        )
        note = f'<div style="font-size:smaller;opacity:.75;margin-top:.5em">{signs}</div>' if legend and signs else ""
        style = "white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext;text-align:start"
        return f'<div class="{NO_MATH}"><div dir="auto" style="{style}">{body}</div>{note}</div>'

    def _repr_html_(self) -> str:
        return self.to_html()


def _span_html(span: Span) -> str:
    text = escape(span.text.translate(CONTROL_PICTURES))
    if span.kind is None:
        return text
    title = f"step {span.step}: {MEANING[span.kind]}; tokens {' '.join(map(str, span.tokens))}"
    return f'<span class="{span.kind}" title="{escape(title)}" style="{CSS[span.kind]}">{text}</span>'


def draw_text(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[int],
    acceptance_lengths: Sequence[int] | None = None,
    skip_special_tokens: bool = False,
) -> TextPicture:
    """
    Returns generated text that shows where each token came from: drafted tokens green and underlined, the target's own
    bold, the first one italic. Told from the token ids, never by searching the text.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        tokens (`Sequence[int]`): New tokens of one row. Padding behind them is left out.
        acceptance_lengths (`Sequence[int]`, *optional*):
            Of this row, from [`EagleGenerateOutput`]; without them the text is shown as it is.
        skip_special_tokens (`bool`, defaults to `False`): Whether to leave out special tokens.

    Returns:
        [`TextPicture`]

    Raises:
        `ValueError`: if there are fewer tokens than the acceptance lengths tell of.
    """
    tokens = [int(token) for token in tokens]
    kinds: list[tuple[Kind | None, int]] = [(None, 0)] * len(tokens)
    if acceptance_lengths is not None and tokens:
        kinds = list(token_kinds(acceptance_lengths))
        if len(kinds) > len(tokens):
            raise ValueError(
                f"Got {len(tokens)} tokens, but the acceptance lengths tell of {len(kinds)} (the first token, and "
                f"{len(kinds) - 1} from {len(acceptance_lengths)} verifications). Pass the new tokens of the same row, "
                "without the prompt: `output.sequences[row, prompt_length:]` and `output.acceptance_lengths[row]`."
            )
        tokens = tokens[: len(kinds)]
    return TextPicture.from_kinds(tokenizer, tokens, kinds, skip_special_tokens)
