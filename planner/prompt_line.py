"""One line of a prompts file: its keys and their types, checked before a tokenizer sees it.

The batch form is OpenAI's (platform.openai.com/docs/api-reference/batch/request-input): custom_id, method,
url, body. A plain line is the body alone, with an optional custom_id. A key that is null counts as absent.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprofiles.errors import UserError
from planner.json_fields import (
    Fields,
    integer,
    is_integer,
    load_object,
    number,
    refuse_unknown,
    show,
    without_nulls,
)

CHAT_URL = "/v1/chat/completions"
TEXT_URL = "/v1/completions"

Messages = list[dict[str, str]]
Prompt = str | tuple[int, ...] | Messages

_READ = (
    "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed",
)  # fmt: skip
_IGNORED = ("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
# Keys that would change the answer in a way not built here, with the values at which they change nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "stream_options": ({},),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLine:
    """What one line asks for; `prompt` is text, token ids or chat messages."""

    custom_id: str | None
    prompt: Prompt
    is_chat: bool
    max_tokens: int | None
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int | None


def parse_line(raw: bytes) -> PromptLine:
    """The line's request; a UserError (without file and line number) says what is wrong with it."""
    line = load_object(raw)
    custom_id = line.pop("custom_id", None)
    if custom_id is not None and (not isinstance(custom_id, str) or not custom_id):
        raise UserError(f"custom_id is {show(custom_id)}; give a string that is not empty")
    body, url = _unwrap(line) if "body" in line else (line, None)
    _check_keys(body)
    is_chat = "messages" in body
    if is_chat and "prompt" in body:
        raise UserError("both prompt and messages are given; keep one")
    if not is_chat and "prompt" not in body:
        raise UserError(f'{"messages" if url == CHAT_URL else "prompt"} is missing; add "prompt": "..."')
    if url is not None and url != (CHAT_URL if is_chat else TEXT_URL):
        raise UserError(
            f"url is {url}, which does not take {'messages' if is_chat else 'prompt'}; change url"
        )
    return PromptLine(
        custom_id=custom_id,
        prompt=_messages(body["messages"]) if is_chat else _prompt(body["prompt"]),
        is_chat=is_chat,
        max_tokens=_max_tokens(body),
        temperature=number(body, "temperature", 0.0),
        top_p=number(body, "top_p", 1.0),
        stop=_stop(body.get("stop")),
        seed=integer(body, "seed"),
    )


def _unwrap(line: Fields) -> tuple[Fields, object]:
    """The body of a batch line and its url."""
    body, method, url = line["body"], line.get("method", "POST"), line.get("url")
    if not isinstance(body, dict):
        raise UserError(f"body is {show(body)}; give an object with prompt or messages")
    if method != "POST":
        raise UserError(f'method is {show(method)}; only "POST" is supported')
    if url not in (None, CHAT_URL, TEXT_URL):
        raise UserError(f"url is {show(url)}; choose {CHAT_URL} or {TEXT_URL}")
    refuse_unknown(line, ("custom_id", "method", "url", "body"))
    return without_nulls(body), url


def _check_keys(body: Fields) -> None:
    refuse_unknown(body, (*_READ, *_IGNORED, *_NEUTRAL))
    for key, neutral in _NEUTRAL.items():
        # 0 and False are equal in Python, yet "logprobs": 0 asks for log probabilities
        if key in body and not any(
            body[key] == value and isinstance(body[key], bool) == isinstance(value, bool) for value in neutral
        ):
            raise UserError(f"{key} {show(body[key])} is not supported; remove {key} from the request")


def _max_tokens(body: Fields) -> int | None:
    old, new = integer(body, "max_tokens"), integer(body, "max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise UserError(f"max_tokens is {old} and max_completion_tokens is {new}; keep one")
    return old if new is None else new


def _stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise UserError(f"stop is {show(value)}; give a string or a list of strings")


def _prompt(value: object) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(is_integer(item) for item in value):
        return tuple(value)
    if isinstance(value, list) and all(isinstance(item, str | list) for item in value):
        raise UserError(f"prompt is a list of {len(value)} prompts; write each on a line of its own")
    raise UserError(f"prompt is {show(value)}; give a string or a list of token ids")


def _messages(value: object) -> Messages:
    if not isinstance(value, list) or not value:
        raise UserError('messages must be a list such as [{"role": "user", "content": "..."}]')
    return [_message(item) for item in value]


def _message(message: object) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UserError(f"message {show(message)} has no role; give role and content")
    unknown = {key for key, item in message.items() if item is not None} - {"role", "content", "name"}
    if unknown:
        raise UserError(f"message key {min(unknown)!r} is not supported; give role and content")
    named = {"name": str(message["name"])} if message.get("name") is not None else {}
    return {"role": message["role"], "content": _content(message.get("content")), **named}


def _content(content: object) -> str:
    """The text of a message, whether one string or a list of text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UserError(f"message content is {show(content)}; give a string")
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise UserError(f"content part {show(part)} is not supported; give text only")
        texts.append(part["text"])
    return "".join(texts)
