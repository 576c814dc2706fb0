"""The bytes that autograd keeps of a forward pass: of the decoder's layers, of their attention, and of the rest."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class SavedBytes:
    """Counts storages once each, and no weight.

    After `count`, `bytes` has those kept by what runs within a decoder layer ('layer'), between its projections and the
    one of its attention's output ('attention'), and elsewhere ('rest'). The attention's output is counted as the
    attention's, also where the projection behind it keeps it.
    """

    def __init__(self, decoder: nn.Module) -> None:
        self.bytes: Counter[str] = Counter()
        self._decoder, self._place = decoder, "rest"
        self._storages: dict[int, Tensor] = {}
        self._own = {value.untyped_storage().data_ptr() for value in decoder.parameters()}

    @contextmanager
    def count(self) -> Iterator[None]:
        """Count what is kept by what runs inside."""
        handles = []
        for layer in self._decoder.layers:
            attention = layer.self_attn
            handles += [
                layer.register_forward_pre_hook(lambda *_: self._enter("layer")),
                attention.v_proj.register_forward_hook(lambda *_: self._enter("attention")),
                attention.o_proj.register_forward_pre_hook(
                    partial(self._leave_attention, layer.gradient_checkpointing)
                ),
                layer.register_forward_hook(lambda *_: self._enter("rest")),
            ]
        with saved_tensors_hooks(self._keep, lambda value: value):
            yield
        for handle in handles:
            handle.remove()

    def _enter(self, place: str) -> None:
        self._place = place

    def _leave_attention(self, checkpointed: bool, _: nn.Module, arguments: tuple[Tensor]) -> None:
        if not checkpointed:
            self._keep(arguments[0])
        self._place = "layer"

    def _keep(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in self._own and storage.data_ptr() not in self._storages:
            self._storages[storage.data_ptr()] = value
            self.bytes[self._place] += storage.nbytes()
        return value
