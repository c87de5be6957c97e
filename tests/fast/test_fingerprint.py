"""Functions compiled without guards of modules: every change of a module that a graph can depend on is seen."""

import copy

import pytest
import torch
from architectures import tiny_target
from torch import nn
from transformers import AttentionInterface, CompileConfig

from eagle_hf.fast import fingerprint as compiling
from eagle_hf.fast.fingerprint import changes_itself, compiled, depends_on, state_of


class Scaled(nn.Module):
    """A module whose forward reads all kinds of attributes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.factor, self.names, self.settings = 2.0, ["a"], {"sign": 1}
        self.activation = torch.tanh

    def forward(self, inputs):
        outputs = self.activation(self.linear(inputs)) * self.factor * self.settings["sign"] + len(self.names)
        return outputs + 100 if self.training else outputs


CHANGES = {
    "number": lambda module: setattr(module, "factor", 3.0),
    "list": lambda module: module.names.append("b"),
    "dictionary": lambda module: module.settings.update(sign=-1),
    "function": lambda module: setattr(module, "activation", torch.sigmoid),
    "mode": lambda module: module.train(),
    "layer": lambda module: setattr(module, "linear", nn.Linear(4, 4)),
    "kind of layer": lambda module: setattr(module, "linear", nn.Sequential(module.linear, nn.ReLU())),
    "hook": lambda module: module.linear.register_forward_hook(lambda layer, inputs, output: output + 1),
    "method": lambda module: setattr(module, "forward", lambda inputs: inputs * 7),
    "dtype": lambda module: module.double(),
    "adapter": lambda module: setattr(module.linear, "scale", nn.Parameter(torch.ones(4))),
}


def run(state, module, inputs):
    depends_on(state)
    return module(inputs)


NEEDS_FILTER = pytest.mark.skipif(
    not hasattr(torch.compiler, "skip_guard_on_all_nn_modules_unsafe"), reason="this PyTorch guards all modules"
)


@pytest.fixture
def module():
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield Scaled().eval()
    torch._dynamo.reset()


def config():
    return CompileConfig(backend="eager", mode="default")


@torch.inference_mode()
def test_a_changed_class_gets_a_graph_of_its_own(module, monkeypatch):
    forward, inputs = compiled(module, run, config()), torch.randn(2, 4)
    before = forward(state_of(module), module, inputs)
    monkeypatch.setattr(Scaled, "forward", lambda self, inputs: inputs * 7)
    assert not torch.equal(module(inputs), before)
    assert torch.equal(forward(state_of(module), module, inputs), module(inputs))


@torch.inference_mode()
def test_global_hooks_are_called(module):
    forward, inputs = compiled(module, run, config()), torch.randn(2, 4)
    before = forward(state_of(module), module, inputs)
    handle = nn.modules.module.register_module_forward_hook(
        lambda layer, inputs, output: output + 1 if isinstance(layer, Scaled) else None
    )
    try:
        assert torch.equal(forward(state_of(module), module, inputs), before + 1)
    finally:
        handle.remove()
    assert torch.equal(forward(state_of(module), module, inputs), before)


def test_another_implementation_of_attention_is_another_state(module):
    before, sdpa = state_of(module), AttentionInterface()["sdpa"]
    AttentionInterface.register("sdpa", lambda *args, **kwargs: sdpa(*args, **kwargs))
    try:
        assert state_of(module) != before
    finally:
        AttentionInterface.register("sdpa", sdpa)
    assert state_of(module) == before


@pytest.mark.parametrize("name", CHANGES)
@torch.inference_mode()
def test_a_changed_module_gets_a_graph_of_its_own(module, name):
    forward = compiled(module, run, config())
    inputs = torch.randn(2, 4)
    before = state_of(module)
    assert torch.equal(forward(before, module, inputs), module(inputs))
    with torch.inference_mode(False):
        CHANGES[name](module)
    assert state_of(module) != before
    inputs = inputs.to(next(module.parameters()).dtype)
    assert torch.equal(forward(state_of(module), module, inputs), module(inputs))


@NEEDS_FILTER
@torch.inference_mode()
def test_without_the_state_a_change_goes_unseen(module):
    """Negative control: it is the state that tells graphs apart, and modules are not guarded besides."""
    forward, inputs = compiled(module, run, config()), torch.randn(2, 4)
    before = forward("same", module, inputs)
    module.factor = 3.0
    assert torch.equal(forward("same", module, inputs), before)
    assert not torch.equal(module(inputs), before)


def test_a_graph_without_a_state_is_refused():
    with pytest.raises(ValueError, match="not told the state"):
        depends_on("")


@torch.inference_mode()
def test_new_values_of_parameters_need_no_new_graph(module):
    forward, inputs, state = compiled(module, run, config()), torch.randn(2, 4), state_of(module)
    forward(state, module, inputs)
    module.linear.weight.mul_(2)
    assert state_of(module) == state
    assert torch.equal(forward(state, module, inputs), module(inputs))


def test_the_state_of_a_target_follows_its_configuration_and_not_what_was_compiled():
    target = tiny_target("llama")
    state = state_of(target)
    target.get_compiled_call(config())
    compiled(target, run, config())
    assert state_of(target) == state
    target.config._attn_implementation = "eager"
    assert state_of(target) != state
    assert state_of(copy.deepcopy(target)) != state_of(target)


def test_a_function_is_compiled_once_per_way_of_compiling(module):
    first = compiled(module, run, config())
    assert compiled(module, run, config()) is first
    assert compiled(module, run, CompileConfig(backend="aot_eager", mode="default")) is not first


@NEEDS_FILTER
@pytest.mark.parametrize(
    ("mode", "backend", "options", "expected"),
    [
        ("default", "inductor", None, {"mode": None, "options": {"guard_filter_fn"}}),
        (None, "inductor", {"cpp_wrapper": True}, {"mode": None, "options": {"guard_filter_fn", "cpp_wrapper"}}),
        ("reduce-overhead", "inductor", None, {"mode": None, "options": {"guard_filter_fn", "triton.cudagraphs"}}),
        ("reduce-overhead", "eager", None, {"mode": "reduce-overhead", "options": set()}),
    ],
)
def test_modes_become_options_beside_the_filter(module, monkeypatch, mode, backend, options, expected):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function, **arguments: calls.append(arguments))
    given = CompileConfig(mode=mode, backend=backend, options=options)
    compiled(module, run, given)
    [arguments] = calls
    assert {"mode": arguments["mode"], "options": set(arguments["options"] or {})} == expected
    assert given.options == options


@NEEDS_FILTER
def test_without_a_filter_modules_are_guarded(module, monkeypatch):
    """As with a PyTorch that has no such filter."""
    monkeypatch.delattr(torch.compiler, "skip_guard_on_all_nn_modules_unsafe")
    forward, inputs = compiling.compiled(module, run, config()), torch.randn(2, 4)
    forward("same", module, inputs)
    module.factor = 3.0
    assert torch.equal(forward("same", module, inputs), module(inputs))


@pytest.mark.parametrize(("rope_type", "expected"), [("default", False), ("llama3", False), ("dynamic", True)])
def test_targets_that_change_their_own_frequencies_are_known(rope_type, expected):
    target = tiny_target("llama")
    target.model.rotary_emb.rope_type = rope_type
    assert changes_itself(target) == expected
    target.model.rotary_emb.rope_type = {"full_attention": rope_type}
    assert changes_itself(target) == expected
