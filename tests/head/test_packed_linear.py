import copy

import pytest
import torch
from torch import nn

from eagle_hf.head.packed_linear import PackedLinear


class Layer(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3, bias=bias), nn.Linear(4, 5, bias=bias)
        self.both = PackedLinear("a", "b")

    def separately(self, inputs):
        return torch.cat([self.a(inputs), self.b(inputs)], dim=-1)


@pytest.fixture(params=[False, True], ids=["no-bias", "bias"])
def layer(request):
    torch.manual_seed(0)
    return Layer(request.param)


@pytest.fixture
def inputs():
    return torch.randn(2, 6, 4)


@torch.no_grad()
def check(layer, inputs):
    layer.both.pack(layer)
    torch.testing.assert_close(layer.both(layer, inputs, packed=True), layer.separately(inputs))
    torch.testing.assert_close(layer.both(layer, inputs), layer.separately(inputs))


def test_is_the_layers_one_by_one(layer, inputs):
    check(layer, inputs)
    check(layer, inputs)


def test_follows_training_casting_and_loading(layer, inputs):
    check(layer, inputs)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    layer.both(layer, inputs).square().mean().backward()
    optimizer.step()
    check(layer, inputs)
    check(layer.double(), inputs.double())
    layer.load_state_dict({name: torch.ones_like(tensor) for name, tensor in layer.state_dict().items()})
    check(layer, inputs.double())
    layer.b.weight = nn.Parameter(torch.zeros_like(layer.b.weight))
    check(layer, inputs.double())
    check(copy.deepcopy(layer), inputs.double())


def test_gradients_flow_to_every_layer(layer, inputs):
    layer.both.pack(layer)
    layer.both(layer, inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_packing_costs_no_memory_and_keeps_the_parameters(layer, inputs):
    names = set(layer.state_dict())
    layer.both.pack(layer)
    assert set(layer.state_dict()) == names
    assert layer.a.weight.untyped_storage().data_ptr() == layer.b.weight.untyped_storage().data_ptr()
    assert layer.a.weight.untyped_storage().nbytes() == 4 * 8 * 4


def test_packing_in_inference_mode_leaves_trainable_parameters(layer, inputs):
    with torch.inference_mode():
        layer.both.pack(layer)
        layer.both(layer, inputs, packed=True)
    layer.separately(inputs).sum().backward()
    assert layer.a.weight.grad is not None


def test_replaced_layers_are_used(layer, inputs):
    """As PEFT does it."""
    check(layer, inputs)
    layer.b = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
    check(layer, inputs)
