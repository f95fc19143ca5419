"""The checkpoint's own tokenizer: found, and applied to a prompt or to chat messages."""

from __future__ import annotations

from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hwprofiles.errors import UserError
from planner.prompt_line import Messages, Prompt


def load_tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a checkpoint; a UserError when there is none that works."""
    remedy = "add its tokenizer files (tokenizer.json, tokenizer_config.json) or leave out --input"
    if not model_dir.is_dir():
        raise UserError(f"{model_dir}: no such directory; give a checkpoint directory as --model-path")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    except (
        Exception
    ) as error:  # transformers and tokenizers raise OSError, ValueError, KeyError and bare Exception
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{model_dir}: no usable tokenizer ({reason}); {remedy}") from None
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # transformers 5 makes up an empty one
        raise UserError(f"{model_dir}: no tokenizer files; {remedy}")
    return tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[int, ...]:
    """Token ids of a prompt; text gets the tokenizer's special tokens, ids are only checked.

    Messages go through the tokenizer's chat template, ending where the assistant's turn begins.
    """
    if isinstance(prompt, str):
        return _encode_text(tokenizer, prompt, add_special_tokens=True)
    if isinstance(prompt, list):
        return _encode_text(tokenizer, _render_chat(tokenizer, prompt), add_special_tokens=False)
    for token_id in prompt:
        if not 0 <= token_id < len(tokenizer):
            raise UserError(f"prompt holds token id {token_id}, the tokenizer has 0 to {len(tokenizer) - 1}")
    return prompt


def _encode_text(
    tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool
) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False))


def _render_chat(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    if tokenizer.chat_template is None:
        raise UserError("the model's tokenizer has no chat template; write prompt instead of messages")
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except (TemplateError, ValueError, TypeError) as error:
        raise UserError(
            f"the chat template refuses these messages ({' '.join(str(error).split())})"
        ) from None
    return str(text)
