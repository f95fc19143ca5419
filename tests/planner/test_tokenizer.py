"""The planner counts tokens as the executor does, which asks transformers: tokenizers, chat templates, whole files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GemmaTokenizer,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from executor.tokenize import encode_prompt, load_tokenizer
from hwprofiles.errors import UserError
from planner.prompts import Request, read_requests
from planner.tokenizer import PromptTokenizer
from tests.executor.tiny import FAMILIES

ROOT = Path(__file__).parents[2]
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It wasn't there, they'd said; we'll see.",
    "def main(args):\n    return sum(args) / len(args)\n\n\n# 12345 numbers 67",
    "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich.",
]
TEXTS = [
    *CORPUS, "a", " a", "  two  spaces ", "\n\nlines\r\n\ttab", "don't DON'T", "naïve café", "한국어 中文 日本語",
    "emoji \U0001f469\u200d\U0001f467 and \U0001f3f3\ufe0f", "</s>", "<s> in the middle <s>", "x<|end|>y",
    "<unk><pad>", "1234567890", "_▁_", "\u00a0\u200b", "e\u0301 composed é", "<|endoftext|> at first", "<bos>",
    "ends with space ", "<|padding|>", "extra<extra_1>token",
]  # fmt: skip


def byte_level(*special: str) -> Tokenizer:
    """Byte pairs of bytes."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def of_characters(*special: str) -> Tokenizer:
    """Byte pairs of characters, a word's space in front of it, with bytes for what is not known."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*special, *in_bytes], show_progress=False, max_token_length=12
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def pairs(backend: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def plain() -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(tokenizer_object=byte_level("<s>", "</s>", "<|end|>"), eos_token="</s>")


def with_start() -> PreTrainedTokenizerBase:
    backend = byte_level("<s>", "</s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.enable_truncation(4)
    backend.enable_padding()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=["<extra_1>"],
    )


def gpt2() -> PreTrainedTokenizerBase:
    vocab, merges = pairs(byte_level("<|endoftext|>"))
    return GPT2Tokenizer(vocab=vocab, merges=merges)


def opt() -> PreTrainedTokenizerBase:
    vocab, merges = pairs(byte_level("<pad>", "</s>"))
    tokenizer = GPT2Tokenizer(
        vocab=vocab, merges=merges, bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>"
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def prefixing() -> PreTrainedTokenizerBase:
    vocab, merges = pairs(byte_level("<|endoftext|>"))
    return GPT2Tokenizer(vocab=vocab, merges=merges, add_prefix_space=True)


def gpt_neox() -> PreTrainedTokenizerBase:
    vocab, merges = pairs(byte_level("<|endoftext|>", "<|padding|>"))
    return GPTNeoXTokenizer(vocab=vocab, merges=merges)


def qwen() -> PreTrainedTokenizerBase:
    vocab, merges = pairs(byte_level("<|endoftext|>"))
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges)
    tokenizer.add_tokens([AddedToken("<|end|>", special=True), AddedToken("jag", normalized=True)])
    return tokenizer


def llama(*, legacy: bool = False) -> PreTrainedTokenizerBase:
    vocab, merges = pairs(of_characters("<unk>", "<s>", "</s>"))
    tokenizer = LlamaTokenizer(vocab=vocab, merges=merges, legacy=legacy)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def gemma() -> PreTrainedTokenizerBase:
    vocab, merges = pairs(of_characters("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"))
    return GemmaTokenizer(vocab=vocab, merges=merges)


CASES: dict[str, tuple[str, Callable[[], PreTrainedTokenizerBase]]] = {
    "plain": ("opt", plain),
    "with a start token, truncation and padding": ("llama", with_start),
    "gpt2": ("gpt2", gpt2),
    "opt": ("opt", opt),
    "opt, prefixing a space": ("opt", prefixing),
    "gpt_neox": ("gpt_neox", gpt_neox),
    "qwen2, which its family corrects": ("qwen2", plain),
    "qwen2": ("qwen2", qwen),
    "qwen3": ("qwen3", qwen),
    "llama": ("llama", llama),
    "llama, legacy": ("llama", partial(llama, legacy=True)),
    "mistral": ("mistral", llama),
    "mixtral, plain": ("mixtral", plain),
    "phi3, which its family corrects": ("phi3", llama),
    "gemma2": ("gemma2", gemma),
    "bloom": ("bloom", with_start),
}


def save(directory: Path, family: str, tokenizer: PreTrainedTokenizerBase, **settings: object) -> Path:
    """A checkpoint's directory as far as tokenizers look at it; `settings` changes tokenizer_config.json."""
    tokenizer.save_pretrained(directory)
    config = {"model_type": family, **FAMILIES.get(family, {})}
    (directory / "config.json").write_text(json.dumps(config))
    change(directory, **settings)
    return directory


def change(directory: Path, **settings: object) -> None:
    path = directory / "tokenizer_config.json"
    known = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({key: value for key, value in known.items() if value != "dropped"}))


def assert_same(directory: Path) -> None:
    theirs, ours = load_tokenizer(directory), PromptTokenizer(directory)
    for text in TEXTS:
        assert ours.encode(text) == encode_prompt(theirs, text), text
    with pytest.raises(UserError) as of_theirs:
        encode_prompt(theirs, (10**6,))
    with pytest.raises(UserError) as of_ours:
        ours.encode((10**6,))
    assert str(of_ours.value) == str(of_theirs.value)


@pytest.mark.parametrize("name", CASES)
def test_texts_have_the_executors_tokens(name: str, tmp_path: Path) -> None:
    """For every class of tokenizer that the families have, as transformers saves it."""
    family, make = CASES[name]
    assert_same(save(tmp_path, family, make()))


SETTINGS: dict[str, tuple[str, Callable[[], PreTrainedTokenizerBase], Mapping[str, object]]] = {
    "no class named": ("llama", plain, {"tokenizer_class": "dropped"}),
    "no class named, but the family has one": ("gpt2", plain, {"tokenizer_class": "dropped"}),
    "a fast class": ("gpt2", gpt2, {"tokenizer_class": "GPT2TokenizerFast"}),
    "bytes under a class of characters": ("llama", with_start, {"tokenizer_class": "LlamaTokenizer"}),
    "start and end as settings, which count no more": (
        "llama", llama, {"add_bos_token": True, "add_eos_token": True}),
    "special tokens split": ("opt", plain, {"split_special_tokens": True}),
    "a prefix for characters": ("llama", llama, {"add_prefix_space": False}),
    "old list of added tokens": ("opt", opt, {"added_tokens_decoder": {
        "1": {"content": "</s>", "special": True, "normalized": True, "lstrip": False, "rstrip": False,
              "single_word": False},
        "900": {"content": "jagen", "special": False, "normalized": True, "lstrip": True, "rstrip": False,
                "single_word": False}}}),
    "tokens written out": ("llama", llama, {"bos_token": {
        "__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": True, "rstrip": True,
        "single_word": False}, "image_token": "<extra_1>"}),
    "more special tokens": ("opt", plain, {"additional_special_tokens": ["<extra_1>", "quer"]}),
    "a token that is none": ("gpt2", gpt2, {"unk_token": None, "pad_token": "<pad>"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_older_checkpoints(name: str, tmp_path: Path) -> None:
    """What tokenizer_config.json may say beside what transformers writes today."""
    family, make, settings = SETTINGS[name]
    assert_same(save(tmp_path, family, make(), **settings))


def test_special_tokens_of_a_file_of_their_own(tmp_path: Path) -> None:
    """special_tokens_map.json, which older versions wrote."""
    save(tmp_path, "llama", llama())
    bos = {"content": "<s>", "lstrip": False, "normalized": False, "rstrip": True, "single_word": False}
    named = {"bos_token": bos, "pad_token": "<pad>", "additional_special_tokens": ["<extra_1>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    assert_same(tmp_path)


TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "with its own start token": "{{ bos_token }}{%- for m in messages -%}\n  [{{ m.role }}] {{ m.content | trim }}"
    "{{ eos_token }}\n{%- endfor -%}",
    "namespaces and blocks": "{% set ns = namespace(found=false, n=0) %}\n    {% for m in messages %}\n"
    "    {% if m.role == 'system' %}{% set ns.found = true %}{% continue %}{% endif %}\n"
    "    {% set ns.n = ns.n + 1 %}{{ ns.n }}: {% generation %}{{ m.content }}{% endgeneration %}\n"
    "    {% endfor %}{{ ns.found }}{{ strftime_now('%Y') }}{{ tools is none }}{{ documents }}",
    "json": "{{ messages | tojson }}{{ dict(a=1)['a'] }}{% for m in messages %}{{ m.get('name', '-') }}{% endfor %}",
    "refusing": "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools\nhere') }}{% endif %}"
    "{{ m.content }}{% endfor %}",
    "broken": "{% for m in messages %}{{ m.content }}",
    "adding to text": "{{ messages[0].content + 1 }}",
    "breaking out": "{{ messages[0].content.__class__.__mro__ }}",
}  # fmt: skip
MESSAGES = [
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "be <|end|> brief "}, {"role": "user", "content": 'naïve <b>&"q"\''}],
    [{"role": "tool", "content": "x"}],
    [{"role": "user", "content": "a", "name": "Ann"}, {"role": "assistant", "content": "b\n"}],
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_messages_are_rendered_alike(name: str, tmp_path: Path) -> None:
    """What a template makes of messages, or says against them."""
    directory = save(tmp_path, "opt", plain(), chat_template=TEMPLATES[name])
    theirs = load_tokenizer(directory)
    for messages in MESSAGES:
        expected = outcome(partial(encode_prompt, theirs), messages)
        assert outcome(lambda prompt: PromptTokenizer(directory).encode(prompt), messages) == expected


def outcome(
    encode: Callable[[list[dict[str, str]]], tuple[int, ...]], messages: list[dict[str, str]]
) -> object:
    try:
        return encode(messages)
    except UserError as error:
        return str(error)


def test_namespaces_hold_no_underscores(tmp_path: Path) -> None:
    """A template that reaches for Python's own attributes is refused by both."""
    directory = save(tmp_path, "opt", plain(), chat_template="{% set ns = namespace(_a=1) %}{{ ns._a }}")
    for encode in (PromptTokenizer(directory).encode, partial(encode_prompt, load_tokenizer(directory))):
        with pytest.raises(UserError, match=r"the chat template refuses these messages .*'_a'"):
            encode(MESSAGES[0])


def test_which_of_several_templates(tmp_path: Path) -> None:
    """A file comes before the settings; of several the one named default."""
    listed = [{"name": "default", "template": "first"}, {"name": "tool_use", "template": "second"}]
    directory = save(tmp_path, "opt", plain(), chat_template=listed)
    more = directory / "additional_chat_templates"
    for path, text in (
        (None, ""),
        (directory / "chat_template.jinja", "third"),
        (more / "rag.jinja", "fourth"),
    ):
        if path:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        expected = encode_prompt(load_tokenizer(directory), MESSAGES[0])
        assert PromptTokenizer(directory).encode(MESSAGES[0]) == expected


LINES = [
    {"prompt": "The quick"}, {"prompt": "dog " * 9, "max_tokens": 3}, {"prompt": [5, 6, 7]},
    {"messages": MESSAGES[1], "max_completion_tokens": 9},
    {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": MESSAGES[3]}},
]  # fmt: skip
BAD_LINES: list[object] = [
    {"prompt": ""}, {"prompt": [10**6]}, {"messages": MESSAGES[2]}, {"prompt": "a", "max_tokens": 0},
    {"prompt": "a " * 200}, {"prompt": "a", "temperature": 9}, {"prompt": 3}, {"prompt": "a", "custom_id": "request-1"},
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with a chat template that refuses tools."""
    directory = tmp_path_factory.mktemp("model")
    return save(directory, "opt", plain(), chat_template=TEMPLATES["refusing"])


def read(path: Path, encode: Callable[..., tuple[int, ...]]) -> list[Request] | str:
    try:
        return read_requests(path, encode, default_max_tokens=7, max_positions=64)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("bad", [None, *BAD_LINES], ids=str)
def test_a_file_is_read_as_the_executor_reads_it(bad: object, checkpoint: Path, tmp_path: Path) -> None:
    """Requests are the same, token by token; a mistake is told in the same words, with file and line."""
    lines = LINES if bad is None else [*LINES[:2], bad]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ours = read(path, PromptTokenizer(checkpoint).encode)
    assert ours == read(path, partial(encode_prompt, load_tokenizer(checkpoint)))
    assert isinstance(ours, str) == (bad is not None)
    if bad is not None:
        assert str(ours).startswith(f"{path}:3: ")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": None}, "holds no tokenizer.json, .*give --prompt-len"),
        ({"tokenizer.json": "{"}, "tokenizer.json: not valid JSON .*give --prompt-len"),
        ({"tokenizer.json": "[]"}, "tokenizer.json: holds list, expected an object"),
        ({"tokenizer.json": "{}"}, "tokenizer.json cannot be used"),
        ({"tokenizer_config.json": '{"tokenizer_class": "CohereTokenizer"}'}, "tokens of a CohereTokenizer cannot be"),
        ({"tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["a.B", null]}}'}, "code or a file of its own"),
        ({"tokenizer_config.json": '{"chat_template": [{"name": "a", "template": "x"}]}'}, "named default"),
        ({"added_tokens.json": "{}"}, "save the tokenizer again"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused(
    files: Mapping[str, str | None], message: str, tmp_path: Path
) -> None:
    """Rather than a guess, an error that says what to give instead."""
    save(tmp_path, "opt", plain())
    for name, content in files.items():
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        PromptTokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_counting_loads_neither_torch_nor_transformers(checkpoint: Path) -> None:
    """A plan from real prompts is made where neither is installed."""
    code = (
        "import sys; from pathlib import Path; from planner.tokenizer import PromptTokenizer; "
        f"print(len(PromptTokenizer(Path({str(checkpoint)!r})).encode('The quick')), "
        "*[name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == 1
