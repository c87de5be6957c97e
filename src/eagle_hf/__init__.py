"""
EAGLE speculative decoding inside Hugging Face `generate`: the same tokens from fewer forwards of the target.

Importing this package makes `generate(assistant_model=draft)` understand EAGLE drafts. Loading targets, publishing,
training and measuring are in `eagle_hf.loading`, `eagle_hf.hub`, `eagle_hf.training` and `eagle_hf.evaluation`.
"""

from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoModel

# First: it says which transformers is needed before anything else fails.
from .versions import __version__ as __version__


# isort: split
from .configuration_eagle import EagleConfig
from .draft_options import DraftOptions
from .generation.attaching import attach, detach
from .generation.candidates import EagleCandidateGenerator
from .generation.custom import decode
from .generation.memory import forget
from .generation.output import EagleGenerateOutput
from .generation.seam import install
from .head.modeling_eagle import EagleDraftModel, EagleDraftOutput
from .lazy import lazy_names
from .tree import DraftTree


if TYPE_CHECKING:
    from . import checkpoints as checkpoints
    from . import evaluation as evaluation
    from . import hub as hub
    from . import loading as loading
    from . import training as training
    from . import visualization as visualization
    from .inspection import inspect_head

__all__ = [
    "DraftOptions",
    "DraftTree",
    "EagleCandidateGenerator",
    "EagleConfig",
    "EagleDraftModel",
    "EagleDraftOutput",
    "EagleGenerateOutput",
    "attach",
    "decode",
    "detach",
    "forget",
    "inspect_head",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"inspection": ("inspect_head",)},
    packages=("checkpoints", "evaluation", "hub", "loading", "training", "visualization"),
)

AutoConfig.register(EagleConfig.model_type, EagleConfig, exist_ok=True)
AutoModel.register(EagleConfig, EagleDraftModel, exist_ok=True)
install()
