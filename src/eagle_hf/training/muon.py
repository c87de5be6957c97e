"""An optimizer of two parts: Muon for the matrices inside the head, AdamW for all else."""

from typing import Any

import torch

from ..head.modeling_eagle import EagleDraftModel


class MuonAndAdamW(torch.optim.Optimizer):
    """
    Muon orthogonalises the updates of matrices, which suits the layers of a head and not its embedding, `lm_head` and
    norms.

    Args:
        head ([`EagleDraftModel`]): The head. Frozen parameters are left out.
        muon_learning_rate (`float`): Of the matrices inside the head, scaled to match the size of AdamW's updates.
        learning_rate (`float`): Of all else.
        betas (`tuple[float, float]`), weight_decay, eps (`float`): As in AdamW; weight decay is of all parameters.

    Raises:
        `ImportError`: if this PyTorch has no Muon.
    """

    def __init__(
        self,
        head: EagleDraftModel,
        muon_learning_rate: float,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ):
        if not hasattr(torch.optim, "Muon"):
            raise ImportError(
                f"`muon_learning_rate` needs a PyTorch that has `torch.optim.Muon`, and {torch.__version__} has none. "
                "Update it, or leave `muon_learning_rate` out."
            )
        named = [(name, p) for name, p in head.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.dim() == 2 and not name.startswith(("lm_head", "embed_tokens"))]
        is_matrix = {id(p) for p in matrices}
        others = [p for _, p in named if id(p) not in is_matrix]
        self.parts = [
            torch.optim.Muon(
                matrices, lr=muon_learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay),
        ]
        super().__init__([p for _, p in named], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]  # for the scheduler

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes one step of both parts."""
        for part in self.parts:
            part.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients of both parts."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of both parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
