"""The model `ropewalk` of lm-evaluation-harness. Importing this module registers it."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from ropewalk.errors import UnknownNameError
from ropewalk.models.extend import ScalingLike, extend, extension_of
from ropewalk.models.load import load
from ropewalk.scaling.policies import DEFAULT_POLICY, Policy

# Options of HFLM that apply to a model that is already loaded.
_HFLM_OPTIONS = {
    *("max_length", "max_batch_size", "add_bos_token", "prefix_token_id", "truncation", "logits_cache"),
    *("softmax_dtype", "mixed_precision_dtype", "think_end_token", "enable_thinking", "chat_template_args"),
}


@register_model("ropewalk")
class RopewalkLM(HFLM):
    """A model with a scaling, for every task of lm-evaluation-harness: `simple_evaluate(model="ropewalk", ...)`.

    With a dynamic scaling the batch size is 1, so that each request gets the frequencies of its own length.
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        tokenizer: Any = None,
        scaling: ScalingLike | None = None,
        policy: Policy | str = DEFAULT_POLICY,
        dtype: str | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        batch_size: int | str = 1,
        **options: Any,
    ) -> None:
        """Load and extend a model, or use a loaded one.

        Args:
            pretrained: a name for `ropewalk.load`, or a loaded model, which needs `tokenizer` as well.
            tokenizer: of a loaded model.
            scaling: for `ropewalk.extend`; by default the model is not extended.
            policy: for `ropewalk.extend`.
            dtype: for `ropewalk.load`.
            device: for `ropewalk.load`; a GPU that does not exist is ignored, because the harness asks for one by
                default.
            trust_remote_code: for `ropewalk.load`.
            batch_size: requests in a batch.
            options: other options of the harness's HFLM, such as `max_length`, past which prompts lose their beginning.

        Raises UnknownNameError for an option that a loaded model cannot use, and InputError as `load` and `extend` do.
        """
        for option in options:
            if option not in _HFLM_OPTIONS:
                raise UnknownNameError("model_args", option, sorted(_HFLM_OPTIONS))
        if isinstance(pretrained, str):
            if str(device).startswith("cuda") and not torch.cuda.is_available():
                device = None
            pretrained, tokenizer = load(pretrained, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        if scaling is not None:
            with warnings.catch_warnings():
                # The warnings are about the saved configuration; this model is never saved.
                warnings.simplefilter("ignore")
                extend(pretrained, scaling, policy=policy)
        extension = extension_of(pretrained)
        if extension is not None and any(scaling.is_dynamic for scaling in extension.scalings.values()):
            batch_size = 1
        tokenizer = copy.deepcopy(tokenizer)  # HFLM sets its padding token
        super().__init__(pretrained=pretrained, tokenizer=tokenizer, batch_size=batch_size, **options)
