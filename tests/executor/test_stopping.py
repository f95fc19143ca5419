"""Stop strings and the text of a completion."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from executor.stopping import SequenceEnd
from planner.prompts import Request


def _end(
    tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = (), *, prompt: str = "x", chat: bool = False
) -> SequenceEnd:
    request = Request(
        custom_id="r",
        index=0,
        prompt_ids=tuple(tokenizer.encode(prompt)),
        max_tokens=1000,
        stop=stop,
        chat=chat,
    )
    return SequenceEnd(request, eos_ids=frozenset(), tokenizer=tokenizer)


def _feed(end: SequenceEnd, ids: list[int]) -> int:
    """Accept ids until the row ends; the number accepted."""
    for number, token_id in enumerate(ids, start=1):
        end.accept(token_id)
        if end.finish_reason is not None:
            return number
    return len(ids)


_TEXT = st.text(alphabet="abö€😀 \n", min_size=1, max_size=30)


@settings(max_examples=200)
@given(
    text=_TEXT, stops=st.lists(st.text(alphabet="abö€😀 \n", min_size=1, max_size=4), min_size=1, max_size=4)
)
def test_stops_where_a_full_decode_would(
    tokenizer: PreTrainedTokenizerBase, text: str, stops: list[str]
) -> None:
    """The row ends with the first token after which the whole text holds a stop string, cut before it."""
    end = _end(tokenizer, tuple(stops))
    ids = tokenizer.encode(text)
    num_accepted = _feed(end, ids)
    prefixes = [str(tokenizer.decode(ids[:num])) for num in range(len(ids) + 1)]
    expected = next((num for num, part in enumerate(prefixes) if any(s in part for s in stops)), None)
    assert (end.finish_reason == "stop") == (expected is not None)
    assert num_accepted == (len(ids) if expected is None else expected)
    whole = prefixes[num_accepted]
    assert end.text() == whole[: min((whole.find(s) for s in stops if s in whole), default=len(whole))]


def test_a_stop_string_in_the_prompt_does_not_stop(tokenizer: PreTrainedTokenizerBase) -> None:
    """Neither a stop string in the prompt nor one that only ends in the completion counts."""
    end = _end(tokenizer, ("ab",), prompt="ab ab a")
    _feed(end, tokenizer.encode("b c"))
    assert end.text() == "b c"
    num_accepted = _feed(end, tokenizer.encode(" ab ab"))
    assert (num_accepted < len(tokenizer.encode(" ab ab")), end.text()) == (True, "b c ")


def test_a_special_token_may_be_a_stop_string(tokenizer: PreTrainedTokenizerBase) -> None:
    """A special token stops by its id and is not kept; others are left out of the text and of the search."""
    end = _end(tokenizer, ("<|end|>", "fox"))
    num_accepted = _feed(end, tokenizer.encode("quick<s> dog<|end|>fox"))
    assert tokenizer.decode(end.token_ids) == "quick<s> dog"
    assert (num_accepted, end.finish_reason, end.text()) == (len(end.token_ids) + 1, "stop", "quick dog")
    split = _end(tokenizer, ("fox",))
    _feed(split, tokenizer.encode("f<s>ox jumps"))
    assert (split.finish_reason, split.text()) == ("stop", "")


@pytest.mark.parametrize(("chat", "expected"), [(False, " brown fox"), (True, "brown fox")])
def test_a_completion_keeps_its_first_space(
    metaspace_tokenizer: PreTrainedTokenizerBase, chat: bool, expected: str
) -> None:
    """Prompt and completion put together read on, also where a tokenizer drops a text's first space."""
    end = _end(metaspace_tokenizer, prompt="The quick", chat=chat)
    _feed(end, metaspace_tokenizer.encode("brown fox"))
    assert end.text() == expected


def test_a_stop_string_may_begin_with_the_first_space(metaspace_tokenizer: PreTrainedTokenizerBase) -> None:
    """The space that belongs to the first token is seen by stop strings."""
    end = _end(metaspace_tokenizer, (" brown",), prompt="The quick")
    _feed(end, metaspace_tokenizer.encode("brown fox"))
    assert (end.finish_reason, end.text()) == ("stop", "")


def test_half_a_character_at_the_prompts_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """A completion that finishes the prompt's last character is decoded by itself."""
    ids = tokenizer.encode("😀")
    assert len(ids) > 1
    request = Request(custom_id="r", index=0, prompt_ids=tuple(ids[:-1]), max_tokens=9)
    end = SequenceEnd(request, eos_ids=frozenset(), tokenizer=tokenizer)
    _feed(end, [ids[-1], *tokenizer.encode("dog")])
    assert end.text() == "\ufffddog"


def test_an_id_the_tokenizer_does_not_know(tokenizer: PreTrainedTokenizerBase) -> None:
    """A padded vocabulary's spare ids have no text."""
    end = _end(tokenizer, ("zzz",))
    _feed(end, [len(tokenizer) + 5, *tokenizer.encode("dog")])
    assert end.text() == "dog"
