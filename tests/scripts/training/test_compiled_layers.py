"""Compiled layers compute the same, under the same names; an error of the compiler names the setting.

The graphs are run as they are, or differentiated in advance, so that no compiler is needed.
"""

import pytest
import torch
from torch._inductor import config as inductor

from model.modeling import VisualChatForConditionalGeneration
from scripts.training.checkpointed_layers import checkpoint_layers
from scripts.training.compiled_layers import compile_layers, compiler_hint
from tests.scripts.training.tiny_decoders import backward, tiny_batch, tiny_model

BATCHES = [(2, 64, 1), (1, 96, 2), (3, 48, 1)]
"""Rows, length, and images of each row."""


class Graphs:
    """A backend of torch.compile that runs graphs as they are, and keeps them."""

    def __init__(self) -> None:
        self.found: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> object:
        self.found.append(graph)
        return graph.forward

    def functions(self) -> list[str]:
        targets = [node.target for graph in self.found for node in graph.graph.nodes]
        return [getattr(target, "__name__", str(target)) for target in targets]


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def trained(
    backend, every: int, layers: int = 3, shapes=BATCHES
) -> tuple[VisualChatForConditionalGeneration, list[torch.Tensor]]:
    """A model after the backward passes of several batches, and their losses."""
    model = tiny_model(layers=layers).train()
    checkpoint_layers(model, every)
    if backend:
        compile_layers(model, True, backend)
    return model, [backward(model, tiny_batch(*shape)) for shape in shapes]


def test_graphs_of_the_layers_give_the_same_bits():
    """Of layers that are checkpointed, and of one that is not."""
    expected, losses = trained(None, 0)
    graphs = Graphs()
    model, same = trained(graphs, 2)
    assert all(map(torch.equal, same, losses))
    for value, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert value.grad is None or torch.equal(value.grad, other.grad)
    functions = graphs.functions()
    # The MLP and the norms are in the graphs, and the attention, which reads where the images lie, is not.
    assert "silu" in functions and "rsqrt" in functions
    assert not {"scaled_dot_product_attention", "softmax"} & set(functions)
    # All layers and lengths share them: those of one row and of several are compiled once each.
    count = len(graphs.found)
    backward(model, tiny_batch(2, 80, 1))
    backward(model, tiny_batch(1, 40, 1))
    assert len(graphs.found) == count


@pytest.mark.long
def test_differentiated_in_advance_the_gradients_are_the_same_to_rounding():
    expected, losses = trained(None, 0, layers=1, shapes=BATCHES[:1])
    model, same = trained("aot_eager", 1, layers=1, shapes=BATCHES[:1])
    torch.testing.assert_close(same, losses, rtol=1e-6, atol=0)
    for value, other in zip(model.parameters(), expected.parameters(), strict=True):
        if value.grad is not None:
            torch.testing.assert_close(value.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_names_and_classes_are_those_of_an_ordinary_model(tmp_path):
    plain, model = tiny_model(), tiny_model().train()
    compile_layers(model, True, Graphs())
    assert list(model.state_dict()) == list(plain.state_dict())
    assert type(model.get_decoder().layers[0]).__name__ == "LlamaDecoderLayer"
    model.save_pretrained(tmp_path)
    loaded = VisualChatForConditionalGeneration.from_pretrained(tmp_path)
    assert all(map(torch.equal, loaded.state_dict().values(), plain.state_dict().values()))


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_are_chosen_without_timing_them_where_numbers_must_repeat(deterministic: bool):
    with inductor.patch(deterministic=not deterministic):
        compile_layers(tiny_model(), deterministic)
        assert inductor.deterministic == deterministic


def test_an_error_of_the_compiler_names_the_setting():
    def fails(graph, inputs):
        raise RuntimeError("no C++ compiler")

    model = tiny_model().train()
    compile_layers(model, True, fails)
    with pytest.raises(Exception, match=r"no C\+\+ compiler") as caught:
        backward(model, tiny_batch())
    assert "`compile: false`" in compiler_hint(caught.value) and "no C++ compiler" in compiler_hint(caught.value)
    assert compiler_hint(RuntimeError("CUDA error: an illegal memory access")) is None
