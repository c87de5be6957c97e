"""How to draft: the fields of `draft.generation_config` that shape the tree, read and checked in one place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import GenerationConfig


TREE_KINDS = ("dynamic", "auto", "static", "chain")

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
    The shape of the draft tree.

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
            costs a synchronisation per level on a GPU, as does `"auto"`.
        draft_retrieval (`int`, defaults to 0):
            Most tokens that are added to a tree by looking them up: where the newest tokens have occurred before, in
            the prompt or in the text so far, what followed them there. Pays where answers repeat their prompt, as in
            summaries and edited code. 0 looks nothing up.
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
        cls, generation_config: GenerationConfig, device_type: str | None = None
    ) -> "DraftOptions":
        """
        Read the options from `draft.generation_config`. Fields that are not set keep their defaults.

        Args:
            generation_config ([`~transformers.GenerationConfig`]): That of the head.
            device_type (`str`, *optional*): Where the head runs: on a `"cpu"`, where verifying more nodes takes longer,
                the size of trees that nobody has chosen is found by measurement.

        Raises:
            `ValueError`: if a value is out of range, or a `draft_*` field does not exist (a misspelt option).
        """
        fields = {name: value for name, value in vars(generation_config).items() if name in cls.__dataclass_fields__}
        unknown = [name for name in vars(generation_config) if name.startswith("draft_") and name not in fields]
        if unknown:
            raise ValueError(
                f"`draft.generation_config` has unknown draft options {unknown}. "
                f"Known: {', '.join(cls.__dataclass_fields__)}."
            )
        chosen = {name: value for name, value in fields.items() if value is not None}
        return cls(**({"draft_tree": "auto"} if device_type == "cpu" else {}) | chosen)

    def as_chain(self) -> "DraftOptions":
        """The same options for a chain. One of automatic size stays that: with one child per node it is a chain."""
        return replace(self, draft_width=1) if self.draft_tree == "auto" else replace(self, draft_tree="chain")

    def to_generation_config(self) -> GenerationConfig:
        """A generation config with these options, to be set as `draft.generation_config`."""
        return GenerationConfig(**{name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def open_generation_config(cls) -> GenerationConfig:
        """The defaults, with the kind of tree left open, as heads have it whose trees nobody has chosen."""
        config = cls().to_generation_config()
        config.draft_tree = None
        return config
