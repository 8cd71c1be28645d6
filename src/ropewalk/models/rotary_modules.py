"""The rotary modules of a transformers model: find them, understand them, and let them return exact tables.

No architecture is assumed. A module is probed for the layout of its tables (channel_layout.py), and the result counts
only if it reproduces what the module itself returns; any other module is refused.

Shapes: as in rotary_table.py.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk import config as configs
from ropewalk.compat.transformers import learned_log_factors
from ropewalk.errors import InputError, UnsupportedModelError
from ropewalk.frequencies import Frequencies
from ropewalk.models.channel_layout import (
    ChannelLayout,
    inv_freq_name,
    layer_type_kwargs,
    probe_channel_layout,
    split_cos_sin,
)
from ropewalk.models.digest import tensor_bytes
from ropewalk.models.patching import AttributePatch, ClassPatch, Mixin, Patch, has_replaced_forward, with_mixin
from ropewalk.models.probe_cache import cached_probe, config_text
from ropewalk.models.rotary_table import RotaryTable

_INV_FREQ_TOLERANCE = 1e-4  # relative; float32 modules are off by 1e-7
_NEAR_POSITIONS = 8  # so near that the module's own float32 angles are accurate


@dataclass(frozen=True)
class RotaryLayer:
    """What a rotary module computes for one of its layer types.

    Attributes:
        config_layer_type: the layer type under which the config lists its frequencies.
        layer_rope: the unscaled rotary embedding and the scaling that the model comes with.
        channel_layout: the layout of its table.
    """

    config_layer_type: str
    layer_rope: configs.LayerRope
    channel_layout: ChannelLayout


@dataclass
class RotaryModule:
    """A rotary module of a model and its path there. Probes call a copy and leave the module as it is."""

    path: str
    module: Any

    @property
    def config(self) -> Any:
        """The config that the module was built from."""
        return self.module.config

    @property
    def device(self) -> torch.device:
        """The device of the module's frequencies."""
        return self.inv_freq(self.layer_types[0]).device

    @property
    def label(self) -> str:
        """The module's name in messages."""
        return f"{type(self.module).__name__} at {self.path}"

    @property
    def layer_types(self) -> list[str]:
        """The layer types with separate frequencies; `["all"]` if all layers share them."""
        if isinstance(getattr(self.module, "inv_freq", None), Tensor):
            return [configs.ALL_LAYERS]
        suffix = "_original_inv_freq"
        return [name.removesuffix(suffix) for name, _ in self.module.named_buffers() if name.endswith(suffix)]

    def inv_freq(self, layer_type: str) -> Tensor:
        """Return the module's current inverse frequencies for a layer type, without learned factors, [P]."""
        inv_freq_P: Tensor = getattr(self.module, inv_freq_name(layer_type))
        return inv_freq_P.detach()

    def layers(self) -> dict[str, RotaryLayer]:
        """Return what the module computes for each of its layer types, by probing it if it changed since last time.

        Raises UnsupportedModelError if that is not cos and sin of positions times the frequencies of its config, and
        on a device without numbers (meta) or without float64 (MPS).
        """
        if self.device.type == "meta":
            raise UnsupportedModelError(self.label, "its frequencies are on the meta device; load the weights first")
        if self.device.type == "mps":
            raise UnsupportedModelError(self.label, "it is on an MPS device, which has no float64; use a CPU or CUDA")
        return cached_probe(self.module, self._fingerprint(), self._probe_layers)

    def computes(
        self, layer_type: str, frequencies: Frequencies, channel_layout: ChannelLayout, length: int = 1
    ) -> bool:
        """Return whether the module itself computes the table of these frequencies.

        `length`: tokens of the text that it is called for, at least 9 or 1; longer texts change dynamic frequencies.
        """
        position_ids = torch.arange(_NEAR_POSITIONS).expand(1, _NEAR_POSITIONS)
        if channel_layout.axes > 1:  # different positions on each axis
            position_ids = position_ids + torch.arange(channel_layout.axes).view(-1, 1, 1)
        if length > _NEAR_POSITIONS:
            last_position = torch.full_like(position_ids[..., :1], length - 1)
            position_ids = torch.cat([position_ids, last_position], dim=-1)
        position_ids = position_ids.to(self.device)
        x = torch.zeros(1, device=self.device)
        twin = RotaryModule(self.path, copy.deepcopy(self.module))
        with torch.no_grad():
            theirs = type(twin.module).forward(twin.module, x, position_ids, **layer_type_kwargs(layer_type))
        factors_P = torch.tensor(twin._learned_factors() or 1.0, dtype=torch.float64)
        inv_freq_P, expected_P = twin.inv_freq(layer_type), torch.tensor(frequencies.inv_freq) / factors_P
        order_P = twin._pair_order(layer_type, expected_P)
        if len(inv_freq_P) != len(expected_P) or not _equal_up_to_rounding(inv_freq_P, expected_P[order_P]):
            return False
        # model.to(bfloat16) rounds the module's frequencies, so the expected table is computed from the rounded ones.
        expected_P[order_P] = inv_freq_P.double().cpu()
        rounded = Frequencies((expected_P * factors_P).numpy(), frequencies.attention_factor)
        ours = RotaryTable(rounded, channel_layout, self.device)(x, position_ids)
        return all(
            our.shape == their.shape
            and torch.allclose(our[:, :_NEAR_POSITIONS], their[:, :_NEAR_POSITIONS].to(our.dtype), atol=1e-5)
            for our, their in zip(split_cos_sin(ours), split_cos_sin(theirs), strict=True)
        )

    def built_from(self, config: Any) -> RotaryModule:
        """Return the module that transformers would build in its place from another config, with the same weights."""
        built = type(self.module)(config).to(self.device)
        built.load_state_dict(self.module.state_dict(), strict=False)
        return RotaryModule(self.path, built)

    def table_patches(self, tables: dict[str, RotaryTable]) -> list[Patch]:
        """Return the patches that make the module return these tables; `tables`: one for each layer type."""
        if has_replaced_forward(self.module):
            raise UnsupportedModelError(self.label, "another library has replaced its forward")
        original_class: Any = type(self.module)
        exact_class = with_mixin(_ReturnsExactTables, original_class)
        return [AttributePatch(self.module, "ropewalk", nn.ModuleDict(tables)), ClassPatch(self.module, exact_class)]

    def _probe_layers(self) -> dict[str, RotaryLayer]:
        ropes = configs.read(self.config).ropes
        layers = {}
        for layer_type in self.layer_types:
            config_layer_type = layer_type if layer_type in ropes else configs.ALL_LAYERS
            if config_layer_type not in ropes:
                raise InputError("layer type", layer_type, ", ".join(ropes))
            layer_rope = ropes[config_layer_type]
            inv_freq_P = torch.tensor(layer_rope.scaling.frequencies(layer_rope.rope, 1).inv_freq)
            channel_layout = self._probe_channel_layout(layer_type, inv_freq_P)
            layer_rope = replace(layer_rope, learned_factors=self._learned_factors())
            frequencies = configs.compute_layer_frequencies(layer_rope.scaling, layer_rope, 1)
            if not self.computes(layer_type, frequencies, channel_layout):
                expected = f"{layer_rope.scaling} of {layer_rope.rope}"
                raise UnsupportedModelError(self.label, f"it does not compute what its config describes: {expected}")
            layers[layer_type] = RotaryLayer(config_layer_type, layer_rope, channel_layout)
        return layers

    def _learned_factors(self) -> tuple[float, ...] | None:
        log_factors_P = learned_log_factors(self.module)
        return None if log_factors_P is None else tuple(log_factors_P.detach().double().exp().tolist())

    def _probe_channel_layout(self, layer_type: str, expected_P: Tensor) -> ChannelLayout:
        order_P = self._pair_order(layer_type, expected_P)
        try:
            return probe_channel_layout(self.module, layer_type, order_P, self.label)
        except UnsupportedModelError:
            raise
        except Exception as error:  # the code of the architecture may fail in any way
            raise UnsupportedModelError(self.label, f"probing its layout failed: {error}") from error

    def _pair_order(self, layer_type: str, expected_P: Tensor) -> Tensor:
        """Return the pair of each entry of `inv_freq`: Ernie 4.5 VL does not keep them in the order of the pairs.

        `expected_P`: the inverse frequency of each pair, without learned factors.
        """
        inv_freq_P = self.inv_freq(layer_type)
        order_P = torch.arange(len(expected_P))
        if len(inv_freq_P) == len(expected_P) and not _equal_up_to_rounding(inv_freq_P, expected_P):
            order_P[inv_freq_P.cpu().argsort()] = expected_P.argsort()
        return order_P

    def _fingerprint(self) -> str:
        """Return a digest of everything that the module's tables depend on: class, config, numbers and tensors."""
        numbers = {name: value for name, value in vars(self.module).items() if isinstance(value, int | float)}
        digest = hashlib.sha256(f"{type(self.module)} {config_text(self.config)} {numbers}".encode())
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            digest.update(f"{tensor.dtype}".encode() + tensor_bytes(tensor))
        return digest.hexdigest()


class _ReturnsExactTables(Mixin):
    """Mixed into the class of a rotary module; its forward returns the tables of the scaling."""

    ropewalk: nn.ModuleDict

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        with torch.no_grad():
            return self.ropewalk[layer_type or configs.ALL_LAYERS](x, position_ids)


def get_text_config(model: nn.Module) -> Any:
    """Return the config of the model's text decoder. Raise UnsupportedModelError if it has none or has an encoder."""
    config = getattr(model, "config", None)
    if config is None:
        raise UnsupportedModelError(type(model).__name__, "it has no config, as the models of transformers have")
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(type(model).__name__, "its encoder reads the text too")
    return configs.get_text_config(config)


def find_rotary_modules(model: nn.Module, text_config: Any) -> list[RotaryModule]:
    """Return the rotary modules of the model's text decoder, in order.

    Raises UnsupportedModelError if there are none.
    """
    candidates = [
        RotaryModule(path, module)
        for path, module in model.named_modules()
        if hasattr(module, "config")
        and any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False))
    ]
    of_decoder = [rotary for rotary in candidates if _is_text_decoder_config(rotary.config, text_config)]
    if not of_decoder:
        reason = "it has no rotary modules"
        if candidates:
            classes = sorted({type(rotary.module).__name__ for rotary in candidates})
            reason = f"its rotary modules ({', '.join(classes)}) do not belong to a text decoder"
        raise UnsupportedModelError(type(model).__name__, reason)
    return of_decoder


def _is_text_decoder_config(config: Any, text_config: Any) -> bool:
    """Return whether a config is that of the text decoder, or a copy of it.

    Granite SWA builds each rotary module from a copy with another base.
    """
    same_role = getattr(config, "is_decoder", None) == getattr(text_config, "is_decoder", None)
    return type(config) is type(text_config) and same_role


def _equal_up_to_rounding(inv_freq_P: Tensor, expected_P: Tensor) -> bool:
    """Return whether inverse frequencies equal the expected float64 ones, rounded to their dtype."""
    dtype = torch.finfo(inv_freq_P.dtype)
    relative, absolute = max(_INV_FREQ_TOLERANCE, dtype.eps), max(1e-12, dtype.smallest_normal)
    return torch.allclose(inv_freq_P.double().cpu(), expected_P, rtol=relative, atol=absolute)
