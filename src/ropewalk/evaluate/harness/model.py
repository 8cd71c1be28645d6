from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from ropewalk.errors import InputError
from ropewalk.models.extend import ScalingLike, extend, extension_of
from ropewalk.models.load import load
from ropewalk.scaling.policies import DEFAULT_POLICY, Policy

# Options of the harness's model that mean something for a model which is loaded already.
_OPTIONS = {
    *("max_length", "max_batch_size", "add_bos_token", "prefix_token_id", "truncation", "logits_cache"),
    *("softmax_dtype", "mixed_precision_dtype", "think_end_token", "enable_thinking", "chat_template_args"),
}


@register_model("ropewalk")
class RopewalkLM(HFLM):
    """A model under a scaling, for every task of lm-evaluation-harness: `simple_evaluate(model="ropewalk", ...)`.

    With a dynamic scaling requests are read one by one, each at the frequencies of its own length.
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
        """Load and extend a model, or take one as it is.

        Args:
            pretrained: a name that `ropewalk.load` takes, or a loaded model; then `tokenizer` is needed.
            scaling, policy: as `ropewalk.extend` takes them.
            dtype, device, trust_remote_code: as `ropewalk.load` takes them; a GPU that is not there is passed over.
            batch_size, options: the harness's own, as `max_length`, past which it cuts the beginning off.
        """
        if unknown := sorted(set(options) - _OPTIONS):
            raise InputError("model_args", ", ".join(unknown), ", ".join(sorted(_OPTIONS)))
        if isinstance(pretrained, str):
            missing = str(device).startswith("cuda") and not torch.cuda.is_available()
            pretrained, tokenizer = load(
                pretrained, dtype=dtype, device=None if missing else device, trust_remote_code=trust_remote_code
            )
        if scaling is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # nothing is saved
                extend(pretrained, scaling, policy=policy)
        extension = extension_of(pretrained)
        if extension is not None and any(each.is_dynamic for each in extension.scalings.values()):
            batch_size = 1
        tokenizer = copy.deepcopy(tokenizer)  # the harness gives it a token to pad with
        super().__init__(pretrained=pretrained, tokenizer=tokenizer, batch_size=batch_size, **options)
