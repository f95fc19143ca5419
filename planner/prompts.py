"""The requests of a job: read from a prompts file with any tokenizer, or made up for a benchmark."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hwprofiles.errors import UserError
from planner.prompt_line import Prompt, PromptLine, parse_line

MAX_TEMPERATURE = 2.0
MAX_STOPS = 4
Encode = Callable[[Prompt], tuple[int, ...]]
"""The token ids of a prompt; a UserError says what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt with how to continue it.

    `index` is the 0-based position in the job; `temperature` 0 is greedy; `chat` is the form of its result.
    """

    custom_id: str
    index: int
    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise UserError("the prompt is empty (zero tokens); give at least one")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens is {self.max_tokens}; ask for at least 1")
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise UserError(f"temperature is {self.temperature}; choose 0 (greedy) to {MAX_TEMPERATURE:g}")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; choose 0 to 1 (1 keeps every token)")
        if len(self.stop) > MAX_STOPS or not all(self.stop):
            raise UserError(
                f"stop holds {len(self.stop)} strings; give at most {MAX_STOPS}, none of them empty"
            )
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}; choose one of 64 bits, such as 0")


def read_requests(
    path: Path, encode: Encode, *, default_max_tokens: int, max_positions: int | None
) -> list[Request]:
    """The requests of a JSONL file, in its order; every mistake is a UserError that begins with `path:line:`.

    A line is in OpenAI's batch form or a plain {"prompt": ...}. A line without max_tokens gets
    `default_max_tokens`, one without temperature is greedy, one without custom_id is "request-<line number>".
    """
    try:
        with path.open("rb") as lines:
            requests = _read_lines(path, lines, encode, default_max_tokens, max_positions)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check --input") from None
    if not requests:
        raise UserError(f'{path}: zero prompts; write one JSON object a line, such as {{"prompt": "Once"}}')
    return requests


def _read_lines(
    path: Path,
    lines: Iterable[bytes],
    encode: Encode,
    default_max_tokens: int,
    max_positions: int | None,
) -> list[Request]:
    requests: list[Request] = []
    first_line: dict[str, int] = {}
    id_pool: dict[int, int] = {}  # one int object per token id: 8 bytes a prompt token instead of 36
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        try:
            line = parse_line(raw)
            custom_id = line.custom_id if line.custom_id is not None else f"request-{number}"
            if custom_id in first_line:
                raise UserError(
                    f"custom_id {custom_id!r} is also on line {first_line[custom_id]}; give each line its own"
                )
            ids = encode(line.prompt)
            prompt_ids = tuple(map(id_pool.setdefault, ids, ids))
            request = _to_request(line, custom_id, len(requests), prompt_ids, default_max_tokens)
            _check_positions(request, max_positions)
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        first_line[custom_id] = number
        requests.append(request)
    return requests


def _to_request(
    line: PromptLine, custom_id: str, index: int, prompt_ids: tuple[int, ...], default_max_tokens: int
) -> Request:
    return Request(
        custom_id=custom_id,
        index=index,
        prompt_ids=prompt_ids,
        max_tokens=default_max_tokens if line.max_tokens is None else line.max_tokens,
        temperature=line.temperature,
        top_p=line.top_p,
        stop=line.stop,
        seed=line.seed,
        chat=line.is_chat,
    )


def _check_positions(request: Request, max_positions: int | None) -> None:
    prompt_len = len(request.prompt_ids)
    total = prompt_len + request.max_tokens
    if max_positions is None or total <= max_positions:
        return
    remedy = f"shorten the prompt by {total - max_positions} tokens"
    if prompt_len < max_positions:
        remedy += f" or lower max_tokens to {max_positions - prompt_len}"
    raise UserError(
        f"prompt of {prompt_len} tokens + max_tokens {request.max_tokens} = {total} tokens, "
        f"the model has {max_positions} positions; {remedy}"
    )


def synthetic_requests(
    num: int, prompt_len: int, gen_len: int, vocab_size: int, seed: int = 0
) -> list[Request]:
    """`num` greedy requests of uniformly random token ids, the same for the same seed."""
    rng = random.Random(seed)
    vocabulary = list(range(vocab_size))  # choices() shares these objects: 8 bytes a prompt token
    return [
        Request(
            custom_id=f"request-{index + 1}",
            index=index,
            prompt_ids=tuple(rng.choices(vocabulary, k=prompt_len)),
            max_tokens=gen_len,
        )
        for index in range(num)
    ]
