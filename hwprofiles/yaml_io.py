"""Frozen dataclasses to and from YAML, strictly: an unknown, missing or bad key is named in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TypeVar

import cattrs
import yaml

from hwprofiles.errors import UserError

T = TypeVar("T")


def _exact_int(value: object, _: type) -> int:
    """An int, or a float without a fraction such as 16.0e9."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise UserError(f"expected a whole number, found {value!r}")


def _exact_float(value: object, _: type) -> float:
    """A number; YAML takes 1e10 without a point for text, so text that is a number is one too."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    raise UserError(f"expected a number, found {value!r}")


def _exact_bool(value: object, _: type) -> bool:
    if isinstance(value, bool):
        return value
    raise UserError(f"expected true or false, found {value!r}")


def _exact_str(value: object, _: type) -> str:
    if isinstance(value, str):
        return value
    raise UserError(f"expected text, found {value!r}")


def _strict_converter(*, detailed: bool) -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=detailed)
    converter.register_structure_hook(int, _exact_int)
    converter.register_structure_hook(float, _exact_float)
    converter.register_structure_hook(bool, _exact_bool)
    converter.register_structure_hook(str, _exact_str)
    converter.register_structure_hook_func(lambda cls: cls is object, lambda value, _: value)  # JSON as it is
    return converter


_QUICK, _DETAILED = _strict_converter(detailed=False), _strict_converter(detailed=True)
"""The first makes its code for a class in half the time, the second knows where a mistake is."""


_EXTRA = "extra fields found"
"""As cattrs begins to say it."""
_UNKNOWN = "a key that is not known is misspelt, or another version's: correct it, or make the file again"


def to_plain(value: object) -> object:
    """Dicts, lists, strings and numbers for a dataclass."""
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value) if field.init}
    if isinstance(value, Mapping):
        return {key: to_plain(each) for key, each in value.items()}
    return [to_plain(each) for each in value] if isinstance(value, list | tuple) else value


def from_plain(data: object, cls: type[T], what: str) -> T:
    """A `cls` from dicts and lists; `what` names the document in the error."""
    try:
        return _QUICK.structure(data, cls)
    except Exception:  # whatever it is, it is looked for once more
        return _explained(data, cls, what)


def _explained(data: object, cls: type[T], what: str) -> T:
    """The same, slower; a UserError names the keys that are wrong."""
    try:
        return _DETAILED.structure(data, cls)
    except UserError:
        raise
    except Exception as error:  # cattrs raises groups of whatever the constructors raised
        messages = cattrs.transform_error(error, path=what, format_exception=_describe)
        unknown = any(message.startswith(_EXTRA) for message in messages)
        raise UserError("; ".join([*messages[:4], *([_UNKNOWN] if unknown else [])])) from None


def _describe(error: BaseException, expected: type | None) -> str:
    if isinstance(error, UserError):
        return str(error)
    return cattrs.v.format_exception(error, expected)


def load_yaml(path: Path) -> dict[str, object]:
    """The mapping a YAML file holds; a UserError when it is missing, malformed or not a mapping."""
    try:
        data = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds {type(data).__name__}, expected a mapping of keys")
    return data


def dump_yaml(value: object) -> str:
    """YAML text of a dataclass, keys in their order of definition."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(to_plain(value), Dumper=dumper, sort_keys=False, default_flow_style=None, width=110)


def check_schema(data: dict[str, object], version: int, what: str) -> None:
    """A UserError unless `data` bears this schema version."""
    found = data.get("schema_version")
    if found is None:
        raise UserError(f"{what}: key schema_version is missing; is this the right kind of file?")
    if found != version:
        raise UserError(f"{what}: schema_version is {found}, this tierplan reads {version}; write it again")
