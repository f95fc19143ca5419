"""A process that does what every run does before its first byte of model; `process.py` runs and weighs it.

Run as `python -m hwprofiles.probes.baseline NUM_GPUS`. It writes one line of JSON, the keys of `Weighed`, and
lives until its standard input closes, so that its GPU memory can be read meanwhile.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, PreTrainedTokenizerFast

from hwprofiles.allocation import trim_heap
from hwprofiles.points import NO_MARGINS, Kernels, Margins
from hwprofiles.probes.allocators import allocator_overhead
from hwprofiles.probes.kernels import AMPERE, usable
from hwprofiles.probes.libraries import library_bytes, load_packed
from hwprofiles.probes.models import kernels_host_bytes
from hwprofiles.probes.weighed import Weighed
from hwprofiles.process_memory import peak_resident_bytes, resident_bytes

_SIZE = 256
_ALSO_IMPORTED = ("cattrs", "huggingface_hub", "jinja2", "psutil", "rich.progress", "rich.table", "safetensors.torch",
                  "transformers.generation", "yaml")  # fmt: skip
"""By the planner and the executor."""
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_OF_ONE_RUN = (torch.bfloat16,)
"""A run loads the kernels of its model's dtype."""
_GEMM_ROWS, _GEMM_SIZES = 256, ((1024, 1024), (4096, 1024), (8192, 1024))
"""Of float32 products, for whose operands matrix libraries keep buffers on every core."""


def load_everything() -> None:
    """Build and run a minute model, so that the libraries have loaded what they load lazily."""
    for name in _ALSO_IMPORTED:
        importlib.import_module(name)
    words = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words).decode([0, 1])
    config = OPTConfig(
        vocab_size=64,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.inference_mode():
        model(input_ids=torch.ones(1, 4, dtype=torch.long))
        for dtype in (torch.float32, torch.bfloat16):
            torch.rand(_SIZE, _SIZE).to(dtype) @ torch.rand(_SIZE, _SIZE).to(dtype)


def use_cpu() -> None:
    """Multiply as a model that computes on the CPU does; operands are given back, the libraries' buffers stay."""
    with torch.inference_mode():
        for shape in _GEMM_SIZES:
            torch.nn.functional.linear(torch.rand(_GEMM_ROWS, shape[1]), torch.rand(shape))
        heads = torch.rand(2, 4, 128, 64)
        torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    trim_heap()


def use_gpu(index: int, dtypes: Sequence[torch.dtype] = _DTYPES) -> None:
    """Create one GPU's context, and run what layers run: libraries load their kernels when first called."""
    device = torch.device("cuda", index)
    for dtype in dtypes:
        weight = torch.rand(4 * _SIZE, _SIZE, device=device, dtype=dtype)
        for rows in (1, 32, 4096):
            x = torch.nn.functional.layer_norm(torch.rand(rows, _SIZE, device=device, dtype=dtype), (_SIZE,))
            torch.nn.functional.gelu(torch.nn.functional.linear(x, weight)).float().softmax(-1).argmax(-1)
        heads = torch.rand(2, 4, 128, 64, device=device, dtype=dtype)
        torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        if not usable(
            device, AMPERE
        ):  # else a kernel attends to one query a row, and a library less is loaded
            torch.nn.functional.scaled_dot_product_attention(heads[:, :, :1], heads, heads)
    torch.cuda.synchronize(index)
    torch.cuda.empty_cache()


def weigh(num_gpus: int) -> Weighed:
    """Weigh the process with its first GPU, then start the others."""
    load_everything()
    peak_bytes = peak_resident_bytes()
    margins, kernels = NO_MARGINS, dict[Kernels, int]()
    if num_gpus:
        first = torch.device("cuda", 0)
        torch.ones(1, device=first)  # its context
        for dtype in _OF_ONE_RUN:
            load_packed(first, dtype)
        peak_bytes = peak_resident_bytes()  # libraries keep on the host what they load for the GPU
        kernels = kernels_host_bytes(first, *_OF_ONE_RUN)
        use_gpu(0)
        context = library_bytes(first)
        allocator, fragmentation = allocator_overhead(first)
        margins = Margins(context_bytes=context, allocator_bytes=allocator, fragmentation_bytes=fragmentation)
    else:
        use_cpu()
        peak_bytes = max(peak_bytes, resident_bytes())
    weighed = Weighed(resident_bytes=peak_bytes, margins=margins, kernels_host_bytes=kernels)
    for index in range(1, num_gpus):
        use_gpu(index)
        library_bytes(torch.device("cuda", index))
    return weighed


def main() -> None:
    """Print what was weighed, and wait."""
    assert AutoTokenizer is not None  # imported for its weight
    print(json.dumps(asdict(weigh(int(sys.argv[1])))), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
