"""
EAGLE speculative decoding inside Hugging Face `generate`: the same tokens from fewer forwards of the target.

Importing this package makes `generate(assistant_model=draft)` understand EAGLE drafts.
"""

from transformers import AutoConfig, AutoModel

# First: it says which transformers is needed before anything else fails.
from .versions import __version__ as __version__


# isort: split
from .checkpoints import export_checkpoint
from .configuration_eagle import EagleConfig
from .draft_options import DraftOptions
from .generation.attaching import attach, detach
from .generation.custom import decode
from .generation.memory import forget
from .generation.output import EagleGenerateOutput
from .generation.seam import install, uninstall
from .head.modeling_eagle import EagleDraftModel, EagleDraftOutput
from .hub.card import Measurements, TaskResult, TrainingFacts, create_model_card
from .inspection import inspect_head
from .loading.targets import load_processor, load_target, load_tokenizer
from .tree import DraftTree


__all__ = [
    "DraftOptions",
    "DraftTree",
    "EagleConfig",
    "EagleDraftModel",
    "EagleDraftOutput",
    "EagleGenerateOutput",
    "Measurements",
    "TaskResult",
    "TrainingFacts",
    "attach",
    "create_model_card",
    "decode",
    "detach",
    "export_checkpoint",
    "forget",
    "inspect_head",
    "install",
    "load_processor",
    "load_target",
    "load_tokenizer",
    "uninstall",
]

AutoConfig.register(EagleConfig.model_type, EagleConfig, exist_ok=True)
AutoModel.register(EagleConfig, EagleDraftModel, exist_ok=True)
install()
