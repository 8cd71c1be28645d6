"""What training keeps in its folder: a checkpoint to continue from, and the losses of each step.

`checkpoint.safetensors` holds the parameters, the best ones so far, the state of the optimizer, and as metadata the
step and what was trained on what. It is replaced as a whole after every step, so a killed run continues with the step
after. `log.jsonl` has one line for each step; lines for steps after the checkpoint are discarded and written again.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ropewalk.errors import InputError
from ropewalk.evaluate.field_checks import describe_difference
from ropewalk.files import replace_file_atomically, write_text_atomically
from ropewalk.models.digest import model_digest
from ropewalk.tuning.base import TuneJob

_CHECKPOINT, _LOG = "checkpoint.safetensors", "log.jsonl"


class TrainingLog:
    """The state of a training.

    Attributes:
        step: the next step.
        is_finished: whether training has ended.
        best_loss: the lowest validation loss so far.
        validations_without_progress: how many validations have passed since then.
    """

    def __init__(self, job: TuneJob, options: object, window: int, processes: int) -> None:
        """Create the state of a training that has not begun.

        Args:
            job: the model, the text and the folder.
            options: the options of the method, as a spec.
            window: tokens of each window; by default another on a CPU than on a GPU.
            processes: how many processes train together.
        """
        self._folder = job.folder
        text = hashlib.sha256()
        for group in (job.documents, job.validation):
            for document in group:
                text.update(document.tobytes() + b"|")
            text.update(b"|")
        self._identity = {
            "model": model_digest(job.model, job.tokenizer),
            "dtype": str(job.model.dtype),
            "text": text.hexdigest(),
            "target": job.target,
            "seed": job.seed,
            "method": str(options),
            "window": window,
            "processes": processes,
        }
        if window < job.target:
            self._identity["keys"] = "weighted"  # earlier versions counted each once
        self._lines: list[str] = []
        self._best: dict[str, Tensor] = {}
        self.step = 0
        self.is_finished = False
        self.best_loss = float("inf")
        self.validations_without_progress = 0

    def note_validation(self, loss: float, parameters: nn.Module) -> None:
        """Keep the parameters if they are the best so far."""
        if loss < self.best_loss:
            self.best_loss, self.validations_without_progress = loss, 0
            self._best = {name: tensor.detach().clone() for name, tensor in parameters.state_dict().items()}
        else:
            self.validations_without_progress += 1

    def set_best(self, parameters: nn.Module) -> None:
        """Set the parameters with the lowest validation loss."""
        parameters.load_state_dict(self._best)

    def save(self, record: dict[str, Any], parameters: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Store the state after a step, and its line of the log."""
        tensors = {f"parameters.{name}": tensor for name, tensor in parameters.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
        progress = {
            "next_step": self.step + 1,
            "is_finished": self.is_finished,
            "best_loss": self.best_loss,
            "validations_without_progress": self.validations_without_progress,
        }
        metadata = {"training": json.dumps(self._identity), "progress": json.dumps(progress)}
        self._lines.append(json.dumps(record))
        write_text_atomically(self._folder / _LOG, "\n".join(self._lines) + "\n")
        with replace_file_atomically(self._folder / _CHECKPOINT, "wb") as file:
            file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))

    def restore(self, parameters: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Continue from the checkpoint in the folder, if there is one.

        Raises InputError if it is damaged, or of another training.
        """
        path = self._folder / _CHECKPOINT
        if not path.exists():
            return
        try:
            with safe_open(path, "pt", device=str(next(parameters.parameters()).device)) as file:
                names, metadata = file.keys(), file.metadata()
                tensors = {name: file.get_tensor(name) for name in names}
            stored, progress = json.loads(metadata["training"]), json.loads(metadata["progress"])
            self._lines = (self._folder / _LOG).read_text(encoding="utf-8").splitlines()[: progress["next_step"]]
        except Exception as error:  # safetensors raises its own type for damaged files
            raise InputError("out", f"{path}, which cannot be read ({error})", "a new folder") from None
        for name, value in self._identity.items():
            if stored.get(name) != value:
                difference = describe_difference(name, stored.get(name), value)
                expected = "a new folder, or one of the same model, text and options"
                raise InputError("out", str(path), expected, difference)
        self._load(tensors, parameters, optimizer)
        self.step, self.is_finished = progress["next_step"], progress["is_finished"]
        self.best_loss = progress["best_loss"]
        self.validations_without_progress = progress["validations_without_progress"]

    def _load(self, tensors: dict[str, Tensor], parameters: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        groups: dict[str, dict[str, Tensor]] = {"parameters": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            groups[kind][rest] = tensor
        parameters.load_state_dict(groups["parameters"])
        self._best = groups["best"]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups["optimizer"].items():
            index, _, part = name.partition(".")
            state.setdefault(int(index), {})[part] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
