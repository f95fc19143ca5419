"""Tokenizer classes: those that transformers builds anew from a vocabulary instead of taking tokenizer.json as it is.

Which one it takes for a checkpoint follows AutoTokenizer.from_pretrained of transformers 5; what each is built of, its
module of transformers/models. tests/planner/test_tokenizer.py holds both against transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from hwprofiles.errors import UserError
from planner.tokenizer_files import REMEDY, TokenizerFiles

Parts = Callable[[Tokenizer, TokenizerFiles], None]
"""Sets the normalizer and the pre-tokenizer."""
_AS_IT_IS = frozenset(
    {"TokenizersBackend", "PythonBackend", "PreTrainedTokenizer", "PreTrainedTokenizerFast", "BloomTokenizer"}
)
_OF_FAMILY = {
    "opt": "GPT2Tokenizer",
    "gpt2": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen2_moe": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
    "mistral": "TokenizersBackend",
    "mixtral": "TokenizersBackend",
    "phi3": "TokenizersBackend",
}
_FAMILY_KNOWS_BETTER = frozenset({"qwen2", "phi3"})
"""Families whose checkpoints are known to name the wrong class."""
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerClass:
    """What a class is built of, beside its vocabulary."""

    parts: Parts
    bpe: Mapping[str, bool]
    names: Mapping[str, str]
    """Special tokens where the checkpoint names none."""
    own_post_processor: bool = False
    """That of tokenizer.json, which adds special tokens, is not used."""
    has_unk: bool = False
    """What no token stands for becomes the unknown one."""

    def build(self, files: TokenizerFiles, unk: str) -> Tokenizer:
        """The tokenizer without its added tokens."""
        model = files.pipeline.get("model")
        if (
            not isinstance(model, Mapping)
            or not isinstance(model.get("vocab"), Mapping)
            or "merges" not in model
        ):
            raise UserError(f"{files.directory}: tokenizer.json is not of byte pairs; {REMEDY}")
        pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
        merges = [(str(left), str(right)) for left, right in pairs]
        named = {"unk_token": unk} if self.has_unk else {}
        tokenizer = Tokenizer(BPE(vocab=dict(model["vocab"]), merges=merges, **self.bpe, **named))
        self.parts(tokenizer, files)
        return tokenizer


def class_of(files: TokenizerFiles) -> TokenizerClass | None:
    """The class that transformers takes; None where it takes tokenizer.json as it is.

    A UserError for a class that is not known here, whose counts would be a guess.
    """
    if "auto_map" in files.settings or (files.directory / "tekken.json").is_file():
        raise UserError(f"{files.directory}: its tokenizer is code or a file of its own; {REMEDY}")
    name = _class_name(files)
    if name in _AS_IT_IS:
        return None
    if name not in _CLASSES:
        raise UserError(f"{files.directory}: tokens of a {name} cannot be counted here; {REMEDY}")
    return _CLASSES[name]


def _class_name(files: TokenizerFiles) -> str:
    family = str(files.config.get("model_type"))
    of_family = _OF_FAMILY.get(family)
    declared = files.settings.get("tokenizer_class") or files.config.get("tokenizer_class")
    if not isinstance(declared, str):
        return of_family or "TokenizersBackend"
    declared = declared.removesuffix("Fast") if declared not in _AS_IT_IS else declared
    if declared == "LlamaTokenizer" and family not in _FAMILY_KNOWS_BETTER and _is_byte_level(files):
        return "TokenizersBackend"
    if of_family and (of_family in _AS_IT_IS or family in _FAMILY_KNOWS_BETTER):
        return of_family
    return declared


def _is_byte_level(files: TokenizerFiles) -> bool:
    return '"ByteLevel"' in (files.directory / "tokenizer.json").read_text(encoding="utf-8")


def _prefixes(files: TokenizerFiles, *, unless: bool) -> bool:
    value = files.settings.get("add_prefix_space")
    return unless if value is None else bool(value)


def _gpt2(tokenizer: Tokenizer, files: TokenizerFiles) -> None:
    space = _prefixes(files, unless=False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)


def _gpt_neox(tokenizer: Tokenizer, files: TokenizerFiles) -> None:
    tokenizer.normalizer = normalizers.NFC()
    _gpt2(tokenizer, files)


def _llama(tokenizer: Tokenizer, files: TokenizerFiles) -> None:
    scheme = "always" if files.settings.get("legacy", False) else "first"
    scheme = scheme if _prefixes(files, unless=True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)


def _qwen2(tokenizer: Tokenizer, files: TokenizerFiles) -> None:
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_QWEN_WORDS), behavior="isolated", invert=False)
    space = _prefixes(files, unless=False)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])


def _gemma(tokenizer: Tokenizer, files: TokenizerFiles) -> None:
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False)


_CLASSES = {
    "GPT2Tokenizer": TokenizerClass(
        parts=_gpt2,
        bpe={"fuse_unk": False},
        names=dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
    ),
    "GPTNeoXTokenizer": TokenizerClass(
        parts=_gpt_neox,
        bpe={"fuse_unk": False},
        names={
            **dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
            "pad_token": "<|padding|>",
        },
        own_post_processor=True,
    ),
    "LlamaTokenizer": TokenizerClass(
        parts=_llama,
        bpe={"fuse_unk": True, "byte_fallback": True},
        names={"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    ),
    "Qwen2Tokenizer": TokenizerClass(
        parts=_qwen2,
        bpe={"fuse_unk": False, "byte_fallback": False},
        names=dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
    ),
    "GemmaTokenizer": TokenizerClass(
        parts=_gemma,
        bpe={"fuse_unk": True, "byte_fallback": True},
        names={
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        has_unk=True,
    ),
}
