import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eagle_hf.fast import cpu
from eagle_hf.fast.cpu import FewRowProducts


@torch.inference_mode()
def test_weights_that_are_no_plain_tensors_are_left_to_torch():
    """Quantized ones say float32 of themselves and hold something else."""
    weight, inputs = torch.randn(4096, 64), torch.randn(2, 64)
    called = []

    class Recording(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            called.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    output = cpu.linear(inputs, weight.as_subclass(Recording))
    assert F.linear in called
    torch.testing.assert_close(output.as_subclass(torch.Tensor), F.linear(inputs, weight))


class Graphs:
    """A backend that compiles nothing and keeps what it was given."""

    def __init__(self):
        self.targets: list[list] = []  # what every graph calls

    def __call__(self, graph, example_inputs):
        self.targets.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(cpu, "_HAS_MKL", True)
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


def compiled_layer(layer, graphs, within=FewRowProducts, **options):
    def run(rows):
        with within():
            return layer(rows)

    return torch.compile(run, backend=graphs, fullgraph=True, **options)


@pytest.mark.parametrize("num_rows", [1, 2, 8, 9, 40])
@pytest.mark.parametrize("sizes", [(256, 300), (6, 4)], ids=["large", "small"])
@pytest.mark.parametrize("has_bias", [False, True])
@torch.no_grad()
def test_products_in_graphs_are_those_of_torch(graphs, num_rows, sizes, has_bias):
    torch.manual_seed(0)
    layer = nn.Linear(*sizes, bias=has_bias)
    for shape in [(num_rows, sizes[0]), (1, num_rows, sizes[0]), (num_rows, 2, sizes[0]), (0, sizes[0]), sizes[:1]]:
        rows = torch.randn(shape)
        torch.testing.assert_close(compiled_layer(layer, graphs, dynamic=False)(rows), layer(rows))


@torch.no_grad()
def test_linear_layers_of_graphs_are_replaced_whoever_wrote_them(graphs):
    layer = nn.Sequential(nn.Linear(256, 300), nn.SiLU(), nn.Linear(300, 256, bias=False))
    few, many = torch.randn(1, 5, 256), torch.randn(1, 12, 256)
    compiled_layer(layer, graphs, dynamic=False)(few)
    compiled_layer(layer, graphs, torch.no_grad, dynamic=False)(few)  # without the mode
    compiled_layer(layer, graphs, dynamic=False)(many)
    assert [targets.count(F.linear) for targets in graphs.targets] == [0, 2, 2]


@torch.no_grad()
@pytest.mark.parametrize("num_rows", [5, 12])
def test_what_is_not_float32_on_a_cpu_with_mkl_is_left_to_torch(graphs, monkeypatch, num_rows):
    rows, layer = torch.randn(num_rows, 256), nn.Linear(256, 300)
    compiled_layer(layer.bfloat16(), graphs)(rows.bfloat16())
    monkeypatch.setattr(cpu, "_HAS_MKL", False)
    compiled_layer(layer.float(), graphs)(rows)
    assert [targets.count(F.linear) for targets in graphs.targets] == [1, 1]


@torch.no_grad()
def test_two_graphs_serve_all_sizes(graphs):
    layer = nn.Linear(256, 300)
    run = compiled_layer(layer, graphs)
    for num_rows in [2, 3, 8, 9, 4, 40, 17]:
        rows = torch.randn(num_rows, 256)
        torch._dynamo.maybe_mark_dynamic(rows, 0)
        torch.testing.assert_close(run(rows), layer(rows))
    assert len(graphs.targets) == 2


@torch.no_grad()
def test_outside_of_graphs_layers_are_as_exact():
    layer, rows = nn.Linear(64, 4096), torch.randn(3, 64)
    with FewRowProducts():
        torch.testing.assert_close(layer(rows), F.linear(rows, layer.weight, layer.bias), rtol=1e-4, atol=1e-4)
