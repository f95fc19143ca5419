"""A checkpoint of random weights as transformers writes it: python -m benchmarks.checkpoint MODEL DTYPE DIR"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from planner.model import load_model

SEED = 0


def write_random_checkpoint(model: str, dtype: str, directory: Path) -> None:
    """The shape of a model that the planner knows, with transformers' own initial weights and no end token."""
    fields = {**load_model(model).config, "dtype": dtype, "eos_token_id": None}
    torch.manual_seed(SEED)
    config = AutoConfig.for_model(str(fields.pop("model_type")), **fields)
    network = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    network.generation_config.eos_token_id = None
    network.save_pretrained(directory)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("dtype")
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    write_random_checkpoint(options.model, options.dtype, options.directory)


if __name__ == "__main__":
    main()
