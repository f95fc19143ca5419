"""Chat templates: messages to text as transformers renders them, without transformers.

Source: transformers/utils/chat_template_utils.py. Templates come with checkpoints and are code of strangers: they run
in jinja's sandbox, and what they are given is plain data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from hwprofiles.errors import UserError
from planner.prompt_line import Messages

REFUSALS = (TemplateError, ValueError, TypeError)
"""What a template raises for messages that it does not take."""
NO_TEMPLATE = "the model's tokenizer has no chat template; write prompt instead of messages"


class ChatTemplate:
    """A template, ready to render."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise refused(error) from None

    def render(self, messages: Messages) -> str:
        """The text of messages, ending where the assistant's turn begins."""
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except REFUSALS as error:
            raise refused(error) from None


def refused(error: Exception) -> UserError:
    """What the template raised, as a user's mistake."""
    return UserError(f"the chat template refuses these messages ({' '.join(str(error).split())})")


class _Generation(Extension):
    """{% generation %}: marks what the assistant said, for training; here its body is all there is to it."""

    tags = {"generation"}  # noqa: RUF012  jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """Takes no name that begins with an underscore: those lead to Python's own attributes."""

    def __init__(*arguments: object, **values: object) -> None:  # `self` may be a name of the template's
        self, rest = arguments[0], arguments[1:]
        names = dict(*rest, **values)
        for name in names:
            _check_name(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"chat templates cannot store {name!r} on a namespace")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "namespace": _Namespace,
    }
    return environment


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja's own, nothing is escaped for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
