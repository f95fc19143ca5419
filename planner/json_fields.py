"""Reading a JSON object strictly: its keys, and values of the type a key asks for."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import TypeGuard

from hwprofiles.errors import UserError

Fields = dict[str, object]


def load_object(raw: bytes) -> Fields:
    """The JSON object of a line without the keys that are null; a UserError for anything else."""
    try:
        text = raw.decode("utf-8-sig").rstrip()
        data = json.loads(text, parse_constant=_refuse_constant)
        if "\\ud" in text.lower():
            json.dumps(data, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise UserError(
            f"not valid JSON ({error.msg}, column {error.colno}); write one object a line"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start}; convert the file") from None
    except UnicodeEncodeError:
        raise UserError(
            "holds half of a surrogate pair (an escape \\ud...), which is no text; remove it"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON ({error}); write one object a line") from None
    if not isinstance(data, dict):
        raise UserError(f'holds {show(data)}, expected an object such as {{"prompt": "..."}}')
    return without_nulls(data)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def without_nulls(fields: Fields) -> Fields:
    """The keys that have a value."""
    return {key: value for key, value in fields.items() if value is not None}


def show(value: object) -> str:
    """A value as JSON, short enough for an error's line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def refuse_unknown(fields: Iterable[str], known: Iterable[str]) -> None:
    """A UserError naming the first key that is not known, and the known one it resembles."""
    known = tuple(known)
    for key in sorted(set(fields) - set(known)):
        close = difflib.get_close_matches(key, known, n=1)
        raise UserError(
            f"key {key!r} is not known; " + (f"did you mean {close[0]!r}?" if close else "remove it")
        )


def integer(fields: Fields, key: str) -> int | None:
    """A whole number or None; true and 1.0 are not whole numbers here."""
    value = fields.get(key)
    if value is None or is_integer(value):
        return value
    raise UserError(f"{key} is {show(value)}; give a whole number")


def is_integer(value: object) -> TypeGuard[int]:
    """Whether it is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def number(fields: Fields, key: str, default: float) -> float:
    """A number as a float, or the default."""
    value = fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**63:
        raise UserError(f"{key} is {show(value)}; give a number")
    return float(value)
