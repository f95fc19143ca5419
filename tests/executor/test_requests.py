"""Prompts files and synthetic prompts."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from executor.tokenize import encode_prompt
from hwprofiles.errors import UserError
from planner.prompts import Request, read_requests, synthetic_requests


def _write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def _read(path: Path, tokenizer: PreTrainedTokenizerBase, max_positions: int | None = 64) -> list[Request]:
    encode = partial(encode_prompt, tokenizer)
    return read_requests(path, encode, default_max_tokens=7, max_positions=max_positions)


def test_plain_line_gets_the_defaults(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A plain prompt is greedy, has the default max_tokens and is named after its line."""
    path = _write(tmp_path / "in.jsonl", "", {"prompt": "The quick"}, {"prompt": "dog", "max_tokens": 3})
    first, second = _read(path, tokenizer)
    assert first == Request(
        custom_id="request-2", index=0, prompt_ids=tuple(tokenizer.encode("The quick")), max_tokens=7
    )
    assert (first.temperature, first.top_p, first.stop, first.seed, first.chat) == (0.0, 1.0, (), None, False)
    assert (second.custom_id, second.index, second.max_tokens) == ("request-3", 1, 3)


def test_batch_line_of_openai_is_read_whole(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Every sampling key of the batch form arrives; keys without effect are tolerated."""
    body = {
        "model": "m", "user": "u", "n": 1, "stream": False, "logprobs": None, "tools": [], "prompt": "fox",
        "max_tokens": 5, "temperature": 0.5, "top_p": 0.25, "stop": ["a", "b"], "seed": -3,
    }  # fmt: skip
    line = {"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": body}
    ids = tuple(tokenizer.encode("fox"))
    expected = Request(
        custom_id="x",
        index=0,
        prompt_ids=ids,
        max_tokens=5,
        temperature=0.5,
        top_p=0.25,
        stop=("a", "b"),
        seed=-3,
    )
    assert _read(_write(tmp_path / "in.jsonl", line), tokenizer) == [expected]


def test_token_ids_are_taken_as_they_are(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A prompt may be a list of token ids, and stop one string."""
    path = _write(tmp_path / "in.jsonl", {"prompt": [5, 6, 7], "stop": "x", "max_completion_tokens": 2})
    (request,) = _read(path, tokenizer)
    assert (request.prompt_ids, request.stop, request.max_tokens) == ((5, 6, 7), ("x",), 2)


def test_messages_go_through_the_chat_template(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Messages, with text parts or a string, end where the assistant's turn begins."""
    parts = [{"type": "text", "text": "quick "}, {"type": "text", "text": "fox"}]
    body = {"messages": [{"role": "system", "content": "lazy"}, {"role": "user", "content": parts}]}
    line = {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": body}
    path = _write(tmp_path / "in.jsonl", line, body)
    first, second = _read(path, chat_tokenizer)
    assert (
        chat_tokenizer.decode(list(first.prompt_ids))
        == "<|system|>lazy<|end|><|user|>quick fox<|end|><|assistant|>"
    )
    assert first.chat
    assert second.chat
    assert second.prompt_ids == first.prompt_ids


def test_byte_order_mark_is_skipped(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A file written by an editor that adds a byte order mark reads as one without."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "fox"}\r\n')
    assert len(_read(path, tokenizer)) == 1


_CHAT = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": ', r"not valid JSON \(Expecting value, column 11\)"),
        ('{"prompt": "a", "top_p": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "not valid JSON"),
        ('"text"', 'holds "text", expected an object'),
        ({}, "prompt is missing"),
        ({"prompt": None}, "prompt is missing"),
        ({"prompt": ""}, r"prompt is empty \(zero tokens\)"),
        ({"prompt": []}, r"prompt is empty \(zero tokens\)"),
        ({"prompt": 3}, "give a string or a list of token ids"),
        ({"prompt": [1, True]}, "give a string or a list of token ids"),
        ({"prompt": ["a", "b"]}, "list of 2 prompts; write each on a line of its own"),
        ({"prompt": [1, 100_000]}, "token id 100000, the tokenizer has 0 to"),
        ({"prompt": "\ud800"}, "half of a surrogate pair"),
        ({"prompt": "a", "stop": "\udc00"}, "half of a surrogate pair"),
        ({"prompt": "a", "custom_id": "\ud800"}, "half of a surrogate pair"),
        ({"prompt": "a", "messages": [_CHAT]}, "keep one"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens is 0; ask for at least 1"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens is 1.5; give a whole number"),
        ({"prompt": "a", "max_tokens": 1, "max_completion_tokens": 2}, "keep one"),
        ({"prompt": "a", "temperature": -1}, "temperature is -1.0; choose 0"),
        ({"prompt": "a", "temperature": "hot"}, 'temperature is "hot"; give a number'),
        ({"prompt": "a", "temperature": 10**400}, "give a number"),
        ({"prompt": "a", "top_p": 1.1}, "top_p is 1.1; choose 0 to 1"),
        ({"prompt": "a", "stop": list("abcde")}, "stop holds 5 strings; give at most 4"),
        ({"prompt": "a", "stop": ""}, "none of them empty"),
        ({"prompt": "a", "stop": 4}, "stop is 4"),
        ({"prompt": "a", "seed": 2**63}, "seed is 9223372036854775808"),
        ({"prompt": "a", "n": 2}, "n 2 is not supported; remove n"),
        ({"prompt": "a", "logprobs": 0}, "logprobs 0 is not supported"),
        ({"prompt": "a", "tools": [{"type": "function"}]}, "tools .* is not supported"),
        ({"prompt": "a", "max_new_tokens": 3}, "'max_new_tokens' is not known; did you mean 'max_tokens'"),
        ({"prompt": "a", "custom_id": 3}, "custom_id is 3"),
        ({"prompt": "a", "custom_id": "one"}, "custom_id 'one' is also on line 1"),
        ({"prompt": "a " * 100}, r"the model has 64 positions; shorten the prompt by \d+ tokens$"),
        ({"prompt": [1] * 60}, "60 tokens .* 7 = 67 .* 64 positions; .* by 3 tokens or .* max_tokens to 4"),
        ({"messages": [_CHAT]}, "no chat template; write prompt"),
        ({"messages": []}, "messages must be a list"),
        ({"messages": ["hi"]}, 'message "hi" has no role'),
        ({"messages": [{"role": "user", "content": None}]}, "content is null"),
        ({"messages": [{**_CHAT, "tool_calls": []}]}, "'tool_calls' is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "give text only"),
        ({"body": "x"}, 'body is "x"'),
        ({"body": {"prompt": "a"}, "method": "GET"}, 'method is "GET"'),
        ({"body": {"prompt": "a"}, "url": "/v1/embeddings"}, 'url is "/v1/embeddings"; choose'),
        ({"body": {"prompt": "a"}, "url": "/v1/chat/completions"}, "does not take prompt; change url"),
        ({"body": {}, "url": "/v1/chat/completions"}, "messages is missing"),
        ({"body": {"prompt": "a"}, "prompt": "a"}, "key 'prompt' is not known"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, line: object, message: str
) -> None:
    """Each mistake is one line that begins with file and line number and says what is wrong."""
    path = _write(tmp_path / "in.jsonl", {"prompt": "fox", "custom_id": "one"}, line)
    with pytest.raises(UserError, match=message) as caught:
        _read(path, tokenizer)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)


def test_the_chat_templates_own_refusal_is_a_user_error(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    """What the template raises is told with the line number."""
    path = _write(tmp_path / "in.jsonl", {"messages": [{"role": "tool", "content": "x"}]})
    with pytest.raises(UserError, match=r":1: the chat template refuses these messages .*no tools here"):
        _read(path, chat_tokenizer)


def test_text_that_is_not_utf8_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Latin-1 text is refused with the place of its first byte."""
    path = tmp_path / "in.jsonl"
    path.write_bytes('{"prompt": "ö"}'.encode("latin-1"))
    with pytest.raises(UserError, match=":1: not UTF-8 at byte 12"):
        _read(path, tokenizer)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_no_prompts_at_all(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, content: str) -> None:
    """An empty file says zero prompts."""
    path = tmp_path / "in.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(f"{path}: zero prompts")):
        _read(path, tokenizer)


def test_a_missing_file(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A file that cannot be read is a user's mistake, not a traceback."""
    with pytest.raises(UserError, match="No such file"):
        _read(tmp_path / "none.jsonl", tokenizer)


def test_no_position_limit(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A model without a limit takes a prompt of any length."""
    path = _write(tmp_path / "in.jsonl", {"prompt": [1] * 10_000})
    assert len(_read(path, tokenizer, max_positions=None)[0].prompt_ids) == 10_000


def test_synthetic_requests_repeat_with_their_seed() -> None:
    """Lengths are as asked, ids lie in the vocabulary, and the seed alone decides them."""
    requests = synthetic_requests(5, 16, 4, vocab_size=50, seed=1)
    assert [request.index for request in requests] == [0, 1, 2, 3, 4]
    assert {(len(request.prompt_ids), request.max_tokens) for request in requests} == {(16, 4)}
    assert all(0 <= token < 50 for request in requests for token in request.prompt_ids)
    assert requests == synthetic_requests(5, 16, 4, vocab_size=50, seed=1)
    assert requests != synthetic_requests(5, 16, 4, vocab_size=50, seed=2)
