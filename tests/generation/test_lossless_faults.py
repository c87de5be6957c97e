"""
What the joint sweep is worth: faults that it was made for come back, one at a time, and the calls that `make lossless`
draws have to find each of them out. Only those of its calls run that have the values of two dimensions which the fault
needs; that the sweep draws such calls at all, and early, is what is tested.
"""

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import pytest
from lossless_cases import Call, draw_case, run_call
from lossless_space import TARGETS

from eagle_hf.cache import layers
from eagle_hf.cache.fixed import capacity
from eagle_hf.cache.keeping import keep_nodes
from eagle_hf.generation import pairing
from eagle_hf.target import prepared, probe, target
from eagle_hf.target.config import TargetConfig
from eagle_hf.versions import STATELESS_LAYERS, STATIC_WINDOWS_GO_BACK


BOUND = 1000  # calls of `make lossless`, which draws 2,500


@dataclass(frozen=True)
class Fault:
    """
    Args:
        put_back: Breaks the library as it was broken, with pytest's `monkeypatch`.
        meets: Whether a call has what the fault needs.
        exists: Whether this version of `transformers` has it.
    """  # noqa: D205

    put_back: Callable[[pytest.MonkeyPatch], None]
    meets: Callable[[Call], bool]
    exists: bool = True


def is_static(call: Call) -> bool:
    return call.of("cache").startswith("static")


def keep_in_static_caches_as_if_nothing_was_recurrent(monkeypatch: pytest.MonkeyPatch) -> None:
    """K11: states of recurrent layers and convolutions were never taken back."""
    real = target.Target._keep

    def keep(self, paths, num_nodes):
        if capacity(self.cache) is None:
            return real(self, paths, num_nodes)
        self.lengths = keep_nodes(self.cache, self.lengths, paths, num_nodes)
        self._num_unkept = 0

    monkeypatch.setattr(target.Target, "_keep", keep)


def pass_masks_of_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """K11: Bloom raised an error where the mask of padded rows is shorter than its static cache."""

    def inputs(model, tokens, positions, attention_mask, cache, is_first=False):
        kwargs = {"position_ids": positions} if prepared.takes_position_ids(model) else {}
        kwargs[prepared.cache_argument(model)] = cache
        return {"input_ids": tokens, "attention_mask": attention_mask, "use_cache": True, **kwargs}

    monkeypatch.setattr(prepared, "prepared_inputs", inputs)


def count_layers_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """B1: layers that read the keys of earlier ones say that they are initialized, and have none."""
    monkeypatch.setattr(layers, "holds_keys", lambda layer: getattr(layer, "is_initialized", False))


def let_shared_layers_run_for_the_last_token_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """B2: nobody asked for hidden states, and features of a prompt were those of its last token."""
    monkeypatch.setattr(TargetConfig, "borrows_keys", property(lambda self: False))


def let_static_windows_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour of K11: nodes push columns out of a static window that are still needed."""
    monkeypatch.setattr(pairing, "_check_static_window", lambda layer, num_columns: None)


HYBRID = ("recurrent", "convolution")
WINDOWS = ("windows", "alternating", "sinks", "chunked")
FAULTS = {
    "hybrid targets with a static cache": Fault(
        keep_in_static_caches_as_if_nothing_was_recurrent,
        lambda call: is_static(call) and TARGETS[call.architecture][0] in HYBRID,
    ),
    "ALiBi with a static cache and padded rows": Fault(
        pass_masks_of_the_text_alone,
        lambda call: is_static(call) and TARGETS[call.architecture][1] == "alibi" and call.of("rows") == "padded",
    ),
    "shared keys and values: layers without any": Fault(
        count_layers_without_keys, lambda call: TARGETS[call.architecture][0] == "shared", bool(STATELESS_LAYERS)
    ),
    "shared keys and values: features of one token": Fault(
        let_shared_layers_run_for_the_last_token_alone,
        lambda call: TARGETS[call.architecture][0] == "shared" and call.of("head reads") == "late layers",
        bool(STATELESS_LAYERS),
    ),
    "windows with a static cache that is too long for them": Fault(
        let_static_windows_forget,
        lambda call: is_static(call) and TARGETS[call.architecture][0] in WINDOWS,
        STATIC_WINDOWS_GO_BACK,
    ),
}


def is_found_out(seed: int, index: int) -> bool:
    """Whether a call of the sweep raises an error or has a mismatch; it counts both alike."""
    try:
        return any(outcome.mismatch for outcome in run_call(*draw_case(seed, index)))
    except Exception:
        return True


@pytest.mark.filterwarnings("ignore")  # as in the sweep
@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.sweep) for seed in (1, 2, 3))])
def test_the_sweep_finds_it_out(name, seed, monkeypatch):
    fault = FAULTS[name]
    if not fault.exists:
        pytest.skip("not in this version of transformers")
    monkeypatch.setattr(probe, "_VERDICTS", WeakKeyDictionary())
    candidates = (index for index in range(BOUND) if fault.meets(draw_case(seed, index)[0]))
    with monkeypatch.context() as broken:
        fault.put_back(broken)
        found = next((index for index in candidates if is_found_out(seed, index)), None)
    assert found is not None
    probe._VERDICTS.clear()
    assert not is_found_out(seed, found)  # it was the fault
