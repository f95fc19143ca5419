"""Tokenizer files: what a checkpoint directory says of its tokenizer, in the order in which transformers believes it.

Source: PreTrainedTokenizerBase.from_pretrained and AutoTokenizer of transformers 5.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken

from hwprofiles.errors import UserError

Json = Mapping[str, object]
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
Special = Mapping[str, AddedToken | str | None]
REMEDY = "leave out --input and give --prompt-len, --gen-len and --num-prompts"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """The files of one checkpoint."""

    directory: Path
    pipeline: Json
    """tokenizer.json."""
    settings: Json
    """tokenizer_config.json, special_tokens_map.json merged in where transformers does so."""
    config: Json
    """config.json: the model's."""
    added: Mapping[int, AddedToken]
    """Tokens beside the model's vocabulary, by their id."""
    chat_template: str | None

    @property
    def named(self) -> dict[str, AddedToken | str | None]:
        """The special tokens that have a name; None where a file says that there is none."""
        by_text = {str(token): token for token in self.added.values()}
        found = {key: _token(value) for key, value in self._named() if value is None or _is_token(value)}
        return {
            key: token if token is None or key not in NAMES else by_text.get(str(token), token)
            for key, token in found.items()
        }

    def _named(self) -> Iterator[tuple[str, object]]:
        for key, value in self.settings.items():
            if key.endswith("_token") and (value is not None or key in NAMES):
                yield key, value
        if isinstance(self._extra, Mapping):
            yield from self._extra.items()

    @property
    def extra(self) -> list[AddedToken | str]:
        """The special tokens without a name."""
        values = self._extra if isinstance(self._extra, list) else []
        return [token for token in map(_token, values) if token is not None]

    @property
    def _extra(self) -> object:
        return self.settings.get("extra_special_tokens") or self.settings.get("additional_special_tokens")


def read_tokenizer_files(directory: Path) -> TokenizerFiles:
    """The files of a checkpoint; a UserError where there is no tokenizer.json, or one that is not JSON."""
    pipeline = _read(directory / "tokenizer.json")
    if pipeline is None:
        raise UserError(
            f"{directory}: holds no tokenizer.json, by which prompts are counted; add it, or {REMEDY}"
        )
    settings = dict(_read(directory / "tokenizer_config.json") or {})
    listed = settings.get("added_tokens_decoder")
    if isinstance(listed, Mapping):
        added = {int(number): _added(token) for number, token in listed.items()}
    else:
        for key, value in (_read(directory / "special_tokens_map.json") or {}).items():
            settings[key] = value
            if isinstance(value, Mapping) and key != "extra_special_tokens":
                settings[key] = {**value, "special": True, "__type": "AddedToken"}
        if (directory / "added_tokens.json").is_file():
            raise UserError(
                f"{directory}: added_tokens.json is no longer read; save the tokenizer again, or {REMEDY}"
            )
        tokens = pipeline.get("added_tokens")
        added = {int(t["id"]): _added(t) for t in tokens} if isinstance(tokens, list) else {}
    return TokenizerFiles(
        directory=directory,
        pipeline=pipeline,
        settings=settings,
        config=_read(directory / "config.json") or {},
        added=added,
        chat_template=_chat_template(directory, settings),
    )


def _chat_template(directory: Path, settings: Json) -> str | None:
    """Files come before the settings; of several the one named default."""
    templates: dict[str, str] = {}
    if (directory / "chat_template.jinja").is_file():
        templates["default"] = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    known = settings.get("chat_template")
    if not templates and isinstance(known, list):
        templates = {str(entry["name"]): str(entry["template"]) for entry in known}
    if templates and "default" not in templates:
        raise UserError(f"{directory}: none of its chat templates ({', '.join(templates)}) is named default")
    return templates["default"] if templates else known if isinstance(known, str) else None


def _is_token(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, Mapping) and value.get("__type") == "AddedToken")


def _token(value: object) -> AddedToken | str | None:
    """A token as a file holds it."""
    if isinstance(value, Mapping):
        return _added(value)
    return None if value is None else str(value)


def _added(token: Json) -> AddedToken:
    flags = {key: bool(value) for key, value in token.items() if key not in ("id", "content", "__type")}
    return AddedToken(str(token["content"]), **flags)


def _read(path: Path) -> Json | None:
    """A JSON object, or None where there is no such file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {REMEDY}") from None
    if not isinstance(data, Mapping):
        raise UserError(f"{path}: holds {type(data).__name__}, expected an object; {REMEDY}")
    return data
