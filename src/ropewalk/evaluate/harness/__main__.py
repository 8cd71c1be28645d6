"""The command line of lm-evaluation-harness with one more model: `ropewalk`.

    python -m ropewalk.evaluate.harness run --model ropewalk --model_args pretrained=smollm2 scaling=yarn:factor=2 \
        max_length=16384 --tasks arc_easy

The harness splits the value of `--model_args` at commas, so pass a scaling with several options as JSON:
`--model_args '{"pretrained": "smollm2", "scaling": "yarn:factor=2,beta_fast=16"}'`.

Its RULER tasks load a tokenizer by name. If `pretrained` is neither a hub id nor a folder, name one of these with
`--metadata '{"tokenizer": "FOLDER"}'`.
"""

from __future__ import annotations

import sys

from lm_eval.__main__ import cli_evaluate

import ropewalk.evaluate.harness.model  # noqa: F401  (registers the model)
from ropewalk.errors import InputError

if __name__ == "__main__":
    try:
        cli_evaluate()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
