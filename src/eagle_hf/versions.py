"""Our version, and what differs between the supported versions of `transformers`: nothing else asks for these."""

from typing import Any

import transformers
from packaging.version import Version
from transformers import cache_utils


__version__ = "0.1.0.dev0"

OLDEST, BELOW = "5.17", "5.25"  # the minor versions that the tests were run with, as in `pyproject.toml`
SUPPORTED = f">={OLDEST},<{BELOW}"
TRANSFORMERS = Version(transformers.__version__)

if Version(OLDEST) > TRANSFORMERS:
    raise ImportError(
        f"eagle_hf needs transformers >= {OLDEST}, and {transformers.__version__} is installed: its caches and its "
        f"decoding loop differ. `pip install 'transformers{SUPPORTED}'` brings a version that works."
    )

# The keyword of a cache in every `forward` and the field of every output: renamed in 5.24, where the old words still
# work, each with a warning.
CACHE = "cache" if Version("5.24") <= TRANSFORMERS else "past_key_values"
CACHE_NAMES = (
    "cache",
    "past_key_values",
    "cache_params",
)  # all words that were ever used, `cache_params` by Mamba's kind

# Stands for layers without keys and values of their own; appeared in 5.23.
STATELESS_LAYERS: tuple[type, ...] = (cache_utils.DummyLayer,) if Version("5.23") <= TRANSFORMERS else ()

# Quantised layers that round every column on its own, so that columns can be moved; appeared in 5.23.
FP8_LAYERS: tuple[type, ...] = tuple(filter(None, [getattr(cache_utils, "Fp8QuantizedLayer", None)]))

# Whether static layers with a window can take columns back as long as none has left the window; since 5.24.
STATIC_WINDOWS_GO_BACK = "crop" in vars(cache_utils.StaticSlidingWindowLayer)


def cache_of(outputs: Any) -> Any:
    """Returns the cache of a target's or a head's output, whatever this version of `transformers` calls it."""
    return getattr(outputs, CACHE, None)


def hidden_states_argument(ids: list[int]) -> list[int] | bool:
    """
    Returns what to pass as `output_hidden_states` to get these entries of a target's `hidden_states`.

    From 5.23 on, a list of indices gets these entries and leaves the others `None`, which keeps them from being held in
    memory. Before, the same list meant outputs of layers, which are entries one further on: all of them are asked for.
    """
    return ids if Version("5.23") <= TRANSFORMERS else True
