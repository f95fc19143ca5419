"""The standard library's own source: text to train on, and functions kept out of it as prompts."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

SKIPPED_FOLDERS = {
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"),
    *("idlelib", "lib2to3", "turtledemo", "ensurepip", "encodings", "pydoc_data"),
}
"""Tests, what others installed, old tools, and tables that nobody wrote by hand."""
HELD_OUT_ONE_IN = 20
"""One module in this many is kept out of training."""
SHORTEST_PROMPT = 12
"""Tokens."""


def library_sources(*, held_out: bool) -> list[str]:
    """The text of the standard library's modules: those to train on, or those kept out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    chosen = [name for name in names if _is_wanted(name) and _is_held_out(name) == held_out]
    return [(root / name).read_text(encoding="utf-8", errors="ignore") for name in chosen]


def _is_wanted(name: Path) -> bool:
    return not SKIPPED_FOLDERS.intersection(name.parts) and not name.name.startswith("_sysconfigdata")


def _is_held_out(name: Path) -> bool:
    return _hash(name.as_posix()) % HELD_OUT_ONE_IN == 0


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def held_out_prompts(count: int, longest: int, num_tokens: Callable[[str], int]) -> list[str]:
    """`count` beginnings of functions the model has not seen, of at most `longest` tokens, in a fixed mix."""
    found = {text for source in library_sources(held_out=True) for text in function_heads(source)}
    fitting = [text for text in sorted(found, key=_hash) if SHORTEST_PROMPT <= num_tokens(text) <= longest]
    if len(fitting) < count:
        raise SystemExit(f"only {len(fitting)} prompts of at most {longest} tokens found, {count} are needed")
    return fitting[:count]


def function_heads(source: str) -> Iterator[str]:
    """Each function of a module up to the end of its docstring, or of its first statement, unindented."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and len(node.body) > 1:
            yield textwrap.dedent("\n".join(lines[node.lineno - 1 : node.body[0].end_lineno]))
