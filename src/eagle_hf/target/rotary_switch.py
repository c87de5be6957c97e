"""
Rotary embeddings whose frequencies depend on the length of the text.

With the types "dynamic" and "longrope", the largest position of a forward decides the frequencies of all its tokens, so
that a draft tree that reaches beyond the switch would turn the tokens before it as well:

```text
positions   ... 4093 4094 4095 │ 4096 4097 ...        longrope, trained with 4096 positions
                     root ─────┼─ draft               all three with the long factors: wrong
```

So no tree crosses the switch, and steps at it are plain ones, made as `generate` makes them (Phi-3 reads its whole text
again there). Behind it, the frequencies of "longrope" stay and trees go on; those of "dynamic" change with every token,
so that steps stay plain.
"""

from dataclasses import dataclass

from transformers import PreTrainedConfig


@dataclass(frozen=True)
class RotarySwitch:
    """
    Knows where the frequencies of a target change.

    Args:
        length (`int`): Longest text with the first frequencies, in tokens.
        keeps_changing (`bool`): Whether they change with every token from there on.
    """

    length: int
    keeps_changing: bool

    @classmethod
    def on_the_way(cls, config: PreTrainedConfig, prompt_len: int, max_length: int | None) -> "RotarySwitch | None":
        """
        Returns the switch that a text meets while it grows; `None` where there is none.

        Args:
            config ([`~transformers.PreTrainedConfig`]): Text config of the target.
            prompt_len (`int`): Tokens of the prompt.
            max_length (`int`, *optional*): Tokens that the text has at most; `None` where only its end is known.
        """
        parameters = getattr(config, "rope_parameters", None) or {}
        by_layer = [p for p in parameters.values() if isinstance(p, dict) and "rope_type" in p]
        switches = []
        for rope in by_layer or [parameters]:
            kind = str(rope.get("rope_type"))
            if "dynamic" in kind:
                switches.append(cls(config.max_position_embeddings, keeps_changing=True))
            elif kind == "longrope":
                length = rope.get("original_max_position_embeddings", config.max_position_embeddings)
                if prompt_len <= length:
                    switches.append(cls(length, keeps_changing=False))
        switches = [switch for switch in switches if max_length is None or max_length > switch.length]
        return min(switches, key=lambda switch: switch.length, default=None)

    def clamp_depth(self, depth: int, root_column: int, root_position: int) -> int:
        """
        Returns how deep a tree may be, so that all its nodes lie on the same side of the switch as the text so far.

        Args:
            depth (`int`): Depth that is wanted.
            root_column (`int`): Column of the root: tokens before it, padding included.
            root_position (`int`): The largest position of a root.
        """
        if root_column < self.length:
            return min(depth, self.length - 1 - root_column)
        return 0 if self.is_plain_step(root_column, root_position) else depth

    def is_plain_step(self, root_column: int, root_position: int) -> bool:
        """Checks whether this step must be one of plain `generate`."""
        return root_column >= self.length and (
            self.keeps_changing or root_column == self.length or root_position <= self.length
        )
