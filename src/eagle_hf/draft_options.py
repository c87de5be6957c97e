"""
Reads and checks, in one place, the options that say how to draft. A head brings its own along
(`draft.generation_config`), and every call of `generate` may say otherwise.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from transformers import GenerationConfig


TREE_KINDS = ("dynamic", "auto", "static", "chain")

# What `transformers` calls the same for other assistants. Only where somebody wrote them: it fills some in by itself.
OTHER_WORDS = {
    "assistant_confidence_threshold": "draft_threshold",
    "prompt_lookup_num_tokens": "draft_retrieval",
}

# The tree of EAGLE-1 for 7B models (`mc_sim_7b_63` in the authors' code): every path is a list of child ranks.
EAGLE1_TREE_PATHS = (
    (0,), (1,), (2,), (3,),
    (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0),
    (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (1, 0, 0),
    (0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2),
    (0, 0, 0, 0, 0), (0, 0, 0, 0, 1),
)  # fmt: skip


@dataclass(frozen=True)
class DraftOptions:
    """
    The shape of the draft tree. `draft.generation_config` holds these options for all calls; a call of `generate` says
    otherwise by keywords of the same names, or in the `generation_config` that is passed to it.

    Args:
        draft_tree (`str`, defaults to `"dynamic"`):
            `"dynamic"` grows the most likely nodes first (EAGLE-2, section 4). `"auto"` does so as far as it pays by
            the times measured while generating, and drafts nothing where it does not (docs/tree.md). `"static"` has the
            same shape in every step (EAGLE-1), `"chain"` drafts one token after the other. Heads whose
            `generation_config` leaves it open draft trees of `"auto"` size on a CPU, and `"dynamic"` ones elsewhere.
        num_assistant_tokens (`int`, defaults to 59):
            Nodes drafted per step, the root excluded (the authors' `total_token - 1`). Not used by `"static"`.
        draft_depth (`int`, defaults to 8): Most drafted tokens on a path (the authors' `depth + 1`).
        draft_width (`int`, defaults to 10):
            Children per expanded node, and nodes expanded per level (the authors' `top_k`). For `"dynamic"` and
            `"auto"`; for the latter, these three are bounds.
        draft_threshold (`float`, defaults to 0.0):
            Nodes below this probability (that of their whole path, as the draft sees it) are left out, so that little
            is drafted where the text is unpredictable. Must be less than 1. For `"dynamic"` and `"chain"`. Above 0 it
            costs a synchronisation per level on a GPU, as does `"auto"`. `assistant_confidence_threshold` means the
            same.
        draft_retrieval (`int`, defaults to 0):
            Most tokens that are added to a tree by looking them up: where the newest tokens have occurred before, in
            the prompt or in the text so far, what followed them there. Pays where answers repeat their prompt, as in
            summaries and edited code. 0 looks nothing up. `prompt_lookup_num_tokens` means the same beside a head.
        draft_coupling (`bool`, defaults to `True`):
            Whether drafts for sampled text are sampled too, with the random numbers that the target's tokens are going
            to be sampled with, so that the two agree more often (docs/tree.md). `False` drafts the likeliest tokens, as
            EAGLE does.
        draft_tree_paths (`Sequence[Sequence[int]]`, *optional*):
            `"static"` only: every node as the ranks of the children that lead to it, `[0, 2]` being the third child of
            the first. Defaults to the 25 nodes of EAGLE-1.
        output_draft_trees (`bool`, defaults to `False`):
            Whether `generate(..., return_dict_in_generate=True)` returns the draft trees of every step.

    Raises:
        `ValueError`: if a value is out of range.
    """

    draft_tree: str = "dynamic"
    num_assistant_tokens: int = 59
    draft_depth: int = 8
    draft_width: int = 10
    draft_threshold: float = 0.0
    draft_retrieval: int = 0
    draft_coupling: bool = True
    draft_tree_paths: Sequence[Sequence[int]] | None = None
    output_draft_trees: bool = False

    def __post_init__(self):
        if self.draft_tree not in TREE_KINDS:
            raise ValueError(f"`draft_tree` must be one of {', '.join(TREE_KINDS)}, got {self.draft_tree!r}.")
        for name in ("num_assistant_tokens", "draft_depth", "draft_width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
        value = self.draft_retrieval
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"`draft_retrieval` must be 0 or a positive integer, got {value!r}.")
        if not isinstance(self.draft_coupling, bool):
            raise ValueError(f"`draft_coupling` must be True or False, got {self.draft_coupling!r}.")
        if not isinstance(self.draft_threshold, (int, float)) or not 0 <= self.draft_threshold < 1:
            raise ValueError(f"`draft_threshold` must be a number from 0 to below 1, got {self.draft_threshold!r}.")
        if self.draft_tree_paths is not None:
            self._validate_paths({tuple(path) for path in self.draft_tree_paths})

    @staticmethod
    def _validate_paths(paths: set[tuple[int, ...]]) -> None:
        if not paths or () in paths or any(not isinstance(rank, int) or rank < 0 for path in paths for rank in path):
            raise ValueError("`draft_tree_paths` must be non-empty lists of child ranks (0 is the likeliest child).")
        for path in paths:
            if len(path) > 1 and path[:-1] not in paths:
                raise ValueError(
                    f"`draft_tree_paths` contains {list(path)} without its parent {list(path[:-1])}. List every node."
                )

    @property
    def static_paths(self) -> list[tuple[int, ...]]:
        """Nodes of the static tree, shallower first, siblings by rank."""
        paths = self.draft_tree_paths if self.draft_tree_paths is not None else EAGLE1_TREE_PATHS
        return sorted({tuple(path) for path in paths}, key=lambda path: (len(path), path))

    @property
    def max_depth(self) -> int:
        """Levels of the deepest tree, the root not counted."""
        return len(self.static_paths[-1]) if self.draft_tree == "static" else self.draft_depth

    @property
    def max_nodes(self) -> int:
        """Nodes of the largest tree, the root included."""
        drafted = len(self.static_paths) if self.draft_tree == "static" else self.num_assistant_tokens
        return 1 + drafted + self.draft_retrieval

    @property
    def max_guesses(self) -> int:
        """Rows that the head computes at most below the root to grow a tree."""
        if self.draft_tree == "static":
            return len(self.static_paths)
        return self.draft_depth * (1 if self.draft_tree == "chain" else self.draft_width)

    @classmethod
    def from_generation_config(
        cls,
        generation_config: GenerationConfig,
        device_type: str | None = None,
        written: Mapping[str, Any] | None = None,
    ) -> "DraftOptions":
        """
        Reads the options from `draft.generation_config`. Fields that are not set keep their defaults.

        Args:
            generation_config ([`~transformers.GenerationConfig`]): That of the head.
            device_type (`str`, *optional*): Where the head runs: on a `"cpu"`, where verifying more nodes takes longer,
                the size of trees that nobody has chosen is found by measurement.
            written (`Mapping[str, Any]`, *optional*): What the call says, see [`written_options`]; it comes first. A
                number of nodes is a choice too: without a kind of tree it means `"dynamic"`, and for a `"chain"`
                without a depth it is the depth.

        Raises:
            `ValueError`: if a value is out of range, a `draft_*` field does not exist (a misspelt option), or two words
                for one option have different values.
        """
        written = written or {}
        _check_names(vars(generation_config), "`draft.generation_config` has")
        own = _written_words(generation_config, None)
        chosen = _in_our_words(own, "`draft.generation_config` has", in_config=True) | dict(written)
        if "draft_tree" not in chosen and device_type == "cpu" and "num_assistant_tokens" not in written:
            chosen["draft_tree"] = "auto"
        if chosen.get("draft_tree") == "chain" and "num_assistant_tokens" in written and "draft_depth" not in written:
            chosen["draft_depth"] = written["num_assistant_tokens"]
        return cls(**chosen)

    def as_chain(self) -> "DraftOptions":
        """
        Returns the same options for a chain. One of automatic size stays that: with one child per node it is a chain.
        """
        return replace(self, draft_width=1) if self.draft_tree == "auto" else replace(self, draft_tree="chain")

    def to_keywords(self) -> dict[str, Any]:
        """Returns the options as keywords of a call of `generate`, whatever the head's own are."""
        return _set_words({name: getattr(self, name) for name in self.__dataclass_fields__})

    def to_generation_config(self) -> GenerationConfig:
        """Returns a generation config with these options, to be set as `draft.generation_config`."""
        return GenerationConfig(**{name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def open_generation_config(cls) -> GenerationConfig:
        """Returns the defaults, with the kind of tree left open, as heads have it whose trees nobody has chosen."""
        config = cls().to_generation_config()
        config.draft_tree = None
        return config


def written_options(
    keywords: Mapping[str, Any], generation_config: GenerationConfig | None, own: GenerationConfig | None
) -> dict[str, Any]:
    """
    Returns the draft options that the caller of `generate` has written, by our names for them. What `transformers`
    fills into a config, and what the target's own config says, were not written for this head and do not count.

    Args:
        keywords (`Mapping[str, Any]`): Keywords of the call; they come first.
        generation_config ([`~transformers.GenerationConfig`], *optional*): The one that was passed to the call.
        own ([`~transformers.GenerationConfig`], *optional*): That of the target.

    Raises:
        `ValueError`: if an option that begins with `draft_` does not exist, or two words for one option have different
            values.
    """
    _check_names(keywords, "`generate` got")
    said = _in_our_words(_set_words(keywords), "`generate` got")
    if generation_config is None:
        return said
    where = "The `generation_config` of this call has"
    _check_names(vars(generation_config), where)
    return _in_our_words(_written_words(generation_config, own), where, in_config=True) | said


def _set_words(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the values that are options, by either word, and set; `None` leaves an option open."""
    names = (*DraftOptions.__dataclass_fields__, *OTHER_WORDS)
    return {name: values[name] for name in names if values.get(name) is not None}


def _written_words(generation_config: GenerationConfig, own: GenerationConfig | None) -> dict[str, Any]:
    """Returns the options, by either word, that somebody wrote into a config, and neither `transformers` nor `own`."""
    written = _set_words(vars(generation_config))
    if not _is_made_from(generation_config, own):
        return written
    filled_in = GenerationConfig._get_default_generation_params() | _set_words({} if own is None else vars(own))
    return {name: value for name, value in written.items() if value != filled_in.get(name)}


def _in_our_words(words: Mapping[str, Any], where: str, in_config: bool = False) -> dict[str, Any]:
    """
    Returns options by our names for them.

    Args:
        words (`Mapping[str, Any]`): Options, by either word.
        where (`str`): Where they were written, for errors.
        in_config (`bool`, *optional*, defaults to `False`):
            Whether that is a config. One that [`DraftOptions.to_generation_config`] made has all of our defaults, which
            nobody has chosen: there the other word holds.

    Raises:
        `ValueError`: if both words are there with different values, or a value is out of range.
    """
    ours = {name: value for name, value in words.items() if name not in OTHER_WORDS}
    for word, name in OTHER_WORDS.items():
        if word not in words:
            continue
        value, default = words[word], DraftOptions.__dataclass_fields__[name].default
        try:
            DraftOptions(**{name: value})
        except ValueError as error:
            reason = f"{where} `{word}={value!r}`, which means `{name}` beside an EAGLE head. {error}"
            raise ValueError(reason) from error
        if ours.get(name, value) != value and not (in_config and ours[name] == default):
            raise ValueError(
                f"{where} `{name}={ours[name]!r}` and `{word}={value!r}`, two words for one option. Leave one of them "
                "out."
            )
        ours[name] = value
    return ours


def is_draft_option(name: str) -> bool:
    """Checks whether a keyword of `generate` is about drafting, existing or misspelt."""
    return name in DraftOptions.__dataclass_fields__ or name.startswith("draft_") or name in OTHER_WORDS


def _is_made_from(generation_config: GenerationConfig, own: GenerationConfig | None) -> bool:
    """
    Checks whether it is a copy of the target's config, or filled in by `transformers`, as older pipelines have it.
    """
    defaults = GenerationConfig._get_default_generation_params()
    if all(getattr(generation_config, name, None) is not None for name, value in defaults.items() if value is not None):
        return True
    origins = [getattr(config, "_original_object_hash", None) for config in (generation_config, own)]
    return origins[0] is not None and origins[0] == origins[1]


def _check_names(names: Collection[str], where: str) -> None:
    known = list(DraftOptions.__dataclass_fields__)
    unknown = [name for name in names if name.startswith("draft_") and name not in known]
    if unknown:
        meant = get_close_matches(unknown[0], known, n=1)
        hint = f"Did you mean `{meant[0]}`? " if meant else ""
        raise ValueError(f"{where} unknown draft options {unknown}. {hint}Known: {', '.join(known)}.")
