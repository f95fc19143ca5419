"""Train a small OPT-architecture model on the library's source: python examples/tiny_model.py DIR."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from library import library_sources
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

PAD, END = "<|pad|>", "<|end|>"
WARMUP_STEPS = 20
NUM_PROGRESS_LINES = 12
MARKER = "trained-with.txt"
"""Written last, so that a checkpoint bears it only when it is whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Shape and training of the model; a checkpoint is trained again when one of them has changed."""

    hidden_size: int = 128
    num_heads: int = 4
    ffn_dim: int = 512
    vocab_size: int = 2048
    context: int = 128
    """Tokens the model sees at once, prompt and completion together."""
    first_layers: int = 4
    num_layers: int = 12
    deepen_at: float = 0.7
    """Share of the training after which the first layers become `num_layers`."""
    batch_size: int = 16
    layer_steps: int = 2600
    """Steps times layers: one step of a model twice as deep counts twice."""
    longest_s: float = 115.0
    """On a slow machine training ends here, with fewer steps."""
    matrix_rate: float = 0.03
    """Peak learning rate of the layers' matrices (Muon)."""
    other_rate: float = 0.01
    """Peak learning rate of embeddings, biases and norms (AdamW)."""
    seed: int = 0

    def digest(self) -> str:
        """A short hash of all settings."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def main() -> int:
    """Train unless DIR holds the trained checkpoint already."""
    directory, settings = Path(sys.argv[1]), Settings()
    marker = directory / MARKER
    if marker.is_file() and marker.read_text() == settings.digest():
        print(f"{directory} holds the trained model already")
        return 0
    shutil.rmtree(directory, ignore_errors=True)
    disable_progress_bar()
    torch.manual_seed(settings.seed)
    sources = library_sources(held_out=False)
    tokenizer = train_tokenizer(sources, settings)
    tokens = encode_all(tokenizer, sources)
    print(f"{len(sources)} modules, {sum(map(len, sources)):,} characters, {len(tokens):,} tokens")
    model = train(build_model(tokenizer, settings, settings.first_layers), tokenizer, tokens, settings)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    marker.write_text(settings.digest())
    return 0


def train_tokenizer(sources: list[str], settings: Settings) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the sources."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(sources, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, bos_token=END, eos_token=END, model_max_length=settings.context
    )


def encode_all(tokenizer: PreTrainedTokenizerFast, sources: list[str]) -> torch.Tensor:
    """All sources behind one another, each followed by the end token."""
    ids = tokenizer([text + END for text in sources], add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([token for source_ids in ids for token in source_ids])


def build_model(tokenizer: PreTrainedTokenizerFast, settings: Settings, num_layers: int) -> OPTForCausalLM:
    """An untrained model in float32."""
    config = OPTConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        word_embed_proj_dim=settings.hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=settings.num_heads,
        ffn_dim=settings.ffn_dim,
        max_position_embeddings=settings.context,
        dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    return OPTForCausalLM(config)


def train(
    model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, tokens: torch.Tensor, settings: Settings
) -> OPTForCausalLM:
    """Train on random windows, deepen the model on the way; the learning rates fall to zero at the end."""
    progress = Progress(settings)
    optimizers = make_optimizers(model, settings)
    for step, batch in enumerate(windows(tokens, settings), start=1):
        if progress.done >= 1:
            break
        if progress.done >= settings.deepen_at and model.config.num_hidden_layers < settings.num_layers:
            model = deepen(model, build_model(tokenizer, settings, settings.num_layers))
            optimizers = make_optimizers(model, settings)
            print(f"{settings.first_layers} layers become {settings.num_layers}", flush=True)
        rate = min(1.0, step / WARMUP_STEPS) * (1 - progress.done)
        loss = train_step(model, optimizers, batch, rate)
        progress.advance(step, model.config.num_hidden_layers, loss)
    print(f"trained {sum(p.numel() for p in model.parameters()):,} parameters in {progress.elapsed_s:.0f} s")
    return model


class Progress:
    """How much of the training is done, by steps or by time, whichever is ahead."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.done = self.next_line = 0.0
        self.layer_steps = 0
        self.mean_loss: float | None = None
        self.start_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Since the first step began."""
        return time.monotonic() - self.start_s

    def advance(self, step: int, num_layers: int, loss: float) -> None:
        """One more step is done; says so now and then."""
        self.layer_steps += num_layers
        elapsed = self.elapsed_s
        share = max(self.layer_steps / self.settings.layer_steps, elapsed / self.settings.longest_s)
        self.done = min(1.0, share)
        self.mean_loss = loss if self.mean_loss is None else 0.95 * self.mean_loss + 0.05 * loss
        if self.done >= min(self.next_line, 1.0):
            self.next_line += 1 / NUM_PROGRESS_LINES
            left = elapsed / self.done - elapsed
            print(f"{self.done:4.0%}  step {step}  loss {self.mean_loss:.2f}  {left:.0f} s left", flush=True)


def deepen(shallow: OPTForCausalLM, deep: OPTForCausalLM) -> OPTForCausalLM:
    """`deep` with each layer of `shallow` followed by copies of it that at first add nothing.

    It computes what `shallow` does, and learns on from there; a small model learns faster than a deep one.
    """
    deep.model.decoder.embed_tokens.load_state_dict(shallow.model.decoder.embed_tokens.state_dict())
    deep.model.decoder.embed_positions.load_state_dict(shallow.model.decoder.embed_positions.state_dict())
    deep.model.decoder.final_layer_norm.load_state_dict(shallow.model.decoder.final_layer_norm.state_dict())
    copies = deep.config.num_hidden_layers // shallow.config.num_hidden_layers
    for j, layer in enumerate(deep.model.decoder.layers):
        layer.load_state_dict(shallow.model.decoder.layers[j // copies].state_dict())
        if j % copies:
            for module in (layer.self_attn.out_proj, layer.fc2):
                torch.nn.init.zeros_(module.weight)
                torch.nn.init.zeros_(module.bias)
    return deep


def make_optimizers(model: OPTForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which learns more from few steps, and AdamW for the rest."""
    matrices = [p for p in model.model.decoder.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=settings.matrix_rate, weight_decay=0.0),
        torch.optim.AdamW(others, lr=settings.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def windows(tokens: torch.Tensor, settings: Settings) -> Iterator[torch.Tensor]:
    """Batches [batch_size, context] of tokens from random places; the same ones for the same seed."""
    generator = torch.Generator().manual_seed(settings.seed)
    offsets = torch.arange(settings.context)
    while True:
        starts = torch.randint(len(tokens) - settings.context, (settings.batch_size, 1), generator=generator)
        yield tokens[starts + offsets]


def train_step(
    model: OPTForCausalLM, optimizers: list[torch.optim.Optimizer], batch: torch.Tensor, rate: float
) -> float:
    """One step at a share `rate` of the peak learning rates; the loss before it."""
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


if __name__ == "__main__":
    sys.exit(main())
