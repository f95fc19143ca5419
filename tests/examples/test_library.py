"""The text the demo trains on and the prompts it keeps out."""

from __future__ import annotations

import ast

from library import function_heads, held_out_prompts, library_sources

SOURCE = '''
class Shelf:
    def put(self, book):
        """Put a book on the shelf."""
        self.books.append(book)
        return self

def empty(): pass

def count(shelf):
    total = len(shelf.books)
    return total
'''


def test_a_prompt_ends_where_the_body_goes_on() -> None:
    """A head reaches to the end of the docstring or of the first statement, without indentation."""
    assert sorted(function_heads(SOURCE)) == [
        "def count(shelf):\n    total = len(shelf.books)",
        'def put(self, book):\n    """Put a book on the shelf."""',
    ]


def test_prompts_come_from_modules_that_are_not_trained_on() -> None:
    """No held-out module is among the training text, and every prompt begins a function of one."""
    trained, held_out = library_sources(held_out=False), library_sources(held_out=True)
    assert trained
    assert held_out
    assert not set(trained) & set(held_out)
    prompts = held_out_prompts(64, 200, len)
    assert len(set(prompts)) == 64
    assert prompts == held_out_prompts(64, 200, len)
    for prompt in prompts:
        assert len(prompt) <= 200
        assert isinstance(ast.parse(prompt).body[0], ast.FunctionDef)
