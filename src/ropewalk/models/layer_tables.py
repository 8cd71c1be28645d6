"""Give each layer of a decoder its own cos and sin, through public forward hooks.

    layers = find_table_layers(model)
    patch = LayerTablePatch(layers, compute_tables)  # compute_tables(x, position_ids) -> one table per layer
    patch.apply()
    patch.revert()

A rotary module computes one table, which its decoder hands to every layer. A hook on the rotary module computes the
tables of all layers at the positions of the call, and stores them as an attribute of the tensors that the module
returns. A hook before each layer exchanges these tensors, wherever they are among its arguments. So nothing is kept
between calls: several threads, KV caches, padded batches and the second forward of gradient checkpointing each see the
tables of their own call. The hooks run outside of the `no_grad` of the rotary module, so gradients reach the tables.

A test call checks that every layer takes its table from the hook: the decoder's own table is replaced by NaN, and the
output must stay the same.

Shapes: as in rotary_table.py; L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk import config as configs
from ropewalk.errors import UnsupportedModelError
from ropewalk.frequencies import Frequencies, fixed_point_angle
from ropewalk.models.cache_layout import read_one_token
from ropewalk.models.dynamic import find_decoder
from ropewalk.models.patching import Patch
from ropewalk.models.rotary_modules import RotaryModule, find_rotary_modules, get_text_config
from ropewalk.models.rotary_table import RotaryTable
from ropewalk.models.wrappers import unwrap_model
from ropewalk.ops.angles import cos_sin_of_fixed_point, to_fixed_point
from ropewalk.scaling.none import NoScaling

Table = Tensor | tuple[Tensor, Tensor]  # cos and sin, [B, T, C] each, or one complex tensor
ComputeTables = Callable[[Tensor, Tensor], Sequence[Table]]

_ATTRIBUTE = "_ropewalk_layer_tables"  # of a tensor that a rotary module returned: the tables, and its index in each
_MAX_STACKED_TOKENS = 256  # up to so many, the tables of all layers are computed at once; above, one at a time


@dataclass(frozen=True)
class TableLayers:
    """The layers of a decoder that take one table of a rotary module.

    Attributes:
        rotary: the rotary module.
        layer_type: the layer type whose table they take; "all" if the rotary module has one table.
        decoder: the module that contains the rotary module and the layers.
        layers: the layers, in the order in which they run.
        table: the table of the unscaled frequencies.
    """

    rotary: RotaryModule
    layer_type: str
    decoder: Any
    layers: tuple[Any, ...]
    table: RotaryTable


@dataclass(eq=False)
class LayerTablePatch:
    """Hooks that give each layer its own table; a patch that registers and removes them.

    Attributes:
        layers: the layers.
        compute_tables: returns the table of each layer, in order and in the form of the rotary module. It is called
            in each forward call, with hidden states (for their dtype and device) and position ids, [B, T] or
            [A, B, T]. Gradients flow through it.
    """

    layers: TableLayers
    compute_tables: ComputeTables
    _handles: list[Any] = field(default_factory=list)

    def apply(self) -> None:
        """Register the hooks."""
        module = self.layers.rotary.module
        self._handles = [module.register_forward_hook(self._attach_tables, with_kwargs=True)]
        for index, layer in enumerate(self.layers.layers):
            hook = partial(_use_table_of_layer, index)
            self._handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))

    def revert(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _attach_tables(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], table: Table) -> None:
        x, position_ids, layer_type = _rotary_arguments(*args, **kwargs)
        if layer_type == self.layers.layer_type:
            _attach(table, self.compute_tables(x, position_ids))


class LayerTables(nn.Module):
    """The exact tables of fixed frequencies, one set for each layer; a `compute_tables` of `LayerTablePatch`."""

    high_L11U: Tensor
    low_L11U: Tensor
    factor_L111: Tensor

    def __init__(self, table: RotaryTable, layer_frequencies: Sequence[Frequencies]) -> None:
        """Create the tables.

        Args:
            table: the table of the rotary module, for its channel layout.
            layer_frequencies: the frequencies of each layer.
        """
        super().__init__()
        self.table = table
        high_LP, low_LP, factor_L = to_fixed_point(layer_frequencies, table.pair_U.device)
        self.register_buffer("high_L11U", high_LP[:, None, None, table.pair_U], persistent=False)
        self.register_buffer("low_L11U", low_LP[:, None, None, table.pair_U], persistent=False)
        # Not a buffer: model.to(bfloat16) would round it.
        self.factor_L111 = factor_L[:, None, None, None]

    def forward(self, x: Tensor, position_ids: Tensor) -> Sequence[Table]:
        """Return the table of each layer, at these positions.

        For few tokens, all are computed together; for many, each when its layer runs, to hold one at a time in memory.
        """
        position_BTU = self.table.column_positions(position_ids)
        if position_BTU.shape[:-1].numel() > _MAX_STACKED_TOKENS:
            return _TablesOnDemand(lambda layer: self._compute(x, position_BTU, layer), len(self.high_L11U))
        tables = self._compute(x, position_BTU, slice(None))
        return list(tables.unbind()) if isinstance(tables, Tensor) else list(zip(*tables, strict=True))

    def _compute(self, x: Tensor, position_BTU: Tensor, layers: int | slice) -> Table:
        """Return the table of one layer, or of several with the layers as a first axis."""
        angle = fixed_point_angle(position_BTU, self.high_L11U[layers], self.low_L11U[layers])
        return self.table.to_channels(x, *cos_sin_of_fixed_point(angle, self.factor_L111[layers]))


class _TablesOnDemand(Sequence[Table]):
    """Tables that are computed when they are read; the last one is kept, because cos and sin are read one by one."""

    def __init__(self, compute: Callable[[int], Table], length: int) -> None:
        self._compute = compute
        self._length = length
        self._last: tuple[int, Table] | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if self._last is None or self._last[0] != index:
            self._last = index, self._compute(index)
        return self._last[1]


def find_table_layers(model: nn.Module, layer_type: str | None = None) -> TableLayers:
    """Return the layers of a model that take the table of a layer type.

    The model is probed with one token, and is as before afterwards.

    Args:
        model: a transformers model, or a wrapper of one, that is not extended.
        layer_type: a layer type of its config; by default the one that attends to the whole text.

    Raises UnsupportedModelError, in one line, if its layers do not take a table that the decoder hands to them.
    """
    model = unwrap_model(model)
    text_config = get_text_config(model)
    layer_type = layer_type or configs.read(text_config).main_layer_type
    found = [
        (rotary, name, layer)
        for rotary in find_rotary_modules(model, text_config)
        for name, layer in rotary.layers().items()
        if layer.config_layer_type == layer_type
    ]
    if len(found) != 1:
        raise UnsupportedModelError(
            type(model).__name__, f"learned frequencies need one rotary module for all layers, and it has {len(found)}"
        )
    [(rotary, name, layer)] = found
    decoder, _ = find_decoder(model, rotary)
    frequencies = configs.compute_layer_frequencies(NoScaling(), layer.layer_rope, None)
    table = RotaryTable(frequencies, layer.channel_layout, rotary.device)
    layers = TableLayers(rotary, name, decoder, (), table)
    try:
        layers = replace(layers, layers=_find_receivers(layers))
        is_complete = bool(layers.layers) and _ignores_own_table(layers)
    except Exception as error:  # the code of the architecture may fail in any way
        raise UnsupportedModelError(type(model).__name__, f"probing its layers failed: {error}") from error
    if not is_complete:
        reason = "learned frequencies need layers that take cos and sin from their decoder"
        raise UnsupportedModelError(type(model).__name__, reason)
    return layers


def _find_receivers(layers: TableLayers) -> tuple[Any, ...]:
    """Return the modules inside the decoder that receive the table, in the order of their first call.

    Only the outermost ones count: a layer hands its table to its attention, and the attention may hand it on.
    """
    received: dict[Any, None] = {}

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _exchange((args, kwargs), 0) is not None:
            received[module] = None

    patch = LayerTablePatch(layers, lambda x, position_ids: [layers.table(x, position_ids)])
    inside = [module for module in layers.decoder.modules() if module is not layers.decoder]
    with _applied(patch):
        handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in inside]
        try:
            read_one_token(layers.decoder, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
    return tuple(layer for module in _outermost(received) for layer in _split_stack(module, received))


def _outermost(modules: Iterable[Any]) -> list[Any]:
    """Return the modules that are inside of no other one."""
    candidates = list(modules)
    inner = {part for module in candidates for part in module.modules() if part is not module}
    return [module for module in candidates if module not in inner]


def _split_stack(module: Any, received: Mapping[Any, None]) -> list[Any]:
    """Return the layers of a module that is a stack of several (HRM) or has several attentions (LongCat)."""
    parts = set(module.modules()) - {module}
    inside = _outermost(part for part in received if part in parts)
    if len(inside) == len({type(part) for part in inside}):
        return [module]
    return [layer for part in inside for layer in _split_stack(part, received)]


def _ignores_own_table(layers: TableLayers) -> bool:
    """Return whether the decoder computes numbers, from the tables of its layers, if its own table is NaN."""

    def spoil(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], table: Table) -> None:
        for part in _parts(table):
            if hasattr(part, _ATTRIBUTE):
                part.fill_(torch.nan)

    patch = LayerTablePatch(layers, lambda x, position_ids: [layers.table(x, position_ids)] * len(layers.layers))
    with _applied(patch):
        handle = layers.rotary.module.register_forward_hook(spoil, with_kwargs=True)  # runs after that of the patch
        try:
            output = read_one_token(layers.decoder, use_cache=False)
        finally:
            handle.remove()
    return bool(output[0].isfinite().all())


@contextmanager
def _applied(patch: Patch) -> Iterator[None]:
    patch.apply()
    try:
        yield
    finally:
        patch.revert()


def _rotary_arguments(x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor, str]:
    """Return the arguments of a rotary module's forward."""
    return x, position_ids, layer_type or configs.ALL_LAYERS


def _parts(table: Table) -> tuple[Tensor, ...]:
    return (table,) if isinstance(table, Tensor) else table


def _attach(table: Table, layer_tables: Sequence[Table]) -> None:
    """Store the tables of the layers on the tensors of the table that they replace."""
    for index, part in enumerate(_parts(table)):
        setattr(part, _ATTRIBUTE, (layer_tables, index))


def _use_table_of_layer(layer: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Before a layer runs, exchange the table among its arguments."""
    return _exchange((args, kwargs), layer)


def _exchange(value: Any, layer: int) -> Any:
    """Return arguments with the table of a layer in place of the decoder's; None if the table is not among them."""
    if isinstance(value, Tensor):
        attached = getattr(value, _ATTRIBUTE, None)
        if attached is None:
            return None
        layer_tables, index = attached
        return _parts(layer_tables[layer])[index]
    if type(value) in (tuple, list):
        items = [_exchange(item, layer) for item in value]
        if all(item is None for item in items):
            return None
        return type(value)(old if new is None else new for old, new in zip(value, items, strict=True))
    if type(value) is dict:
        changed = {}
        for key, item in value.items():  # torch.compile cannot read a comprehension with an assignment expression
            new = _exchange(item, layer)
            if new is not None:
                changed[key] = new
        return value | changed if changed else None
    return None
