"""What differs between the supported versions of `transformers`. Nothing else here asks for a version."""

import transformers
from packaging.version import Version
from transformers import cache_utils


OLDEST = "5.17"
TRANSFORMERS = Version(transformers.__version__)

if Version(OLDEST) > TRANSFORMERS:
    raise ImportError(
        f"eagle_hf needs transformers >= {OLDEST}, and {transformers.__version__} is installed: its caches and its "
        f"decoding loop differ. `pip install 'transformers>={OLDEST},<6'` brings a version that works."
    )

# Stands for layers without keys and values of their own; appeared in 5.23.
STATELESS_LAYERS: tuple[type, ...] = (cache_utils.DummyLayer,) if Version("5.23") <= TRANSFORMERS else ()

# Quantised layers that round every column on its own, so that columns can be moved; appeared in 5.23.
FP8_LAYERS: tuple[type, ...] = tuple(filter(None, [getattr(cache_utils, "Fp8QuantizedLayer", None)]))


def hidden_states_argument(ids: list[int]) -> list[int] | bool:
    """
    What to pass as `output_hidden_states` to get these entries of a target's `hidden_states`.

    From 5.23 on, a list of indices gets these entries and leaves the others `None`, which keeps them from being held in
    memory. Before, the same list meant outputs of layers, which are entries one further on: all of them are asked for.
    """
    return ids if Version("5.23") <= TRANSFORMERS else True
