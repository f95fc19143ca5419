"""When one sequence ends, and the text it has then: end-of-sequence tokens, stop strings, max_tokens."""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedTokenizerBase

from planner.prompts import Request

FinishReason = Literal["stop", "length"]

# Prompt tokens decoded before a completion, for tokenizers that drop the space of a first token; and tokens
# decoded beyond a stop string's own, so that half a character at the window's edge does not hide it.
_NUM_CONTEXT = 4


class SequenceEnd:
    """The tokens of one row, accepted one by one until a reason to stop appears.

    `token_ids` holds every token but the end-of-sequence one, those of a stop string included; `text` is cut
    before the stop string, as OpenAI's is. Without a tokenizer there is no text and no stop string is seen.
    """

    def __init__(
        self, request: Request, *, eos_ids: frozenset[int], tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._max_tokens = request.max_tokens
        self._tokenizer = tokenizer
        self._stops: tuple[str, ...] = ()
        self._eos_ids = eos_ids
        # A completion continues the prompt's text; a chat answer begins a text of its own.
        self._context = () if request.chat else request.prompt_ids[-_NUM_CONTEXT:]
        self._special_ids: frozenset[int] = frozenset()
        if tokenizer is not None and request.stop:
            added = tokenizer.added_tokens_decoder.items()
            special = {token.content: token_id for token_id, token in added if token.special}
            self._special_ids = frozenset(special.values())
            # A special token never shows in the text, so as a stop string it is recognised by its id.
            self._eos_ids |= {special[stop] for stop in request.stop if stop in special}
            self._stops = tuple(stop for stop in request.stop if stop not in special)
        self._window = _NUM_CONTEXT + max((len(stop.encode()) for stop in self._stops), default=0)
        self._visible_ids = list(self._context)

    def accept(self, token_id: int) -> None:
        """Append a token; `finish_reason` says whether it was the last."""
        if token_id in self._eos_ids:
            self.finish_reason = "stop"
            return
        self.token_ids.append(token_id)
        if self._stops and self._sees_stop(token_id):
            self.finish_reason = "stop"
        elif len(self.token_ids) == self._max_tokens:
            self.finish_reason = "length"

    def text(self) -> str | None:
        """The completion up to the first stop string; None without a tokenizer."""
        if self._tokenizer is None:
            return None
        text = self._whole_text()
        cuts = [text.find(stop) for stop in self._stops]
        return text[: min((cut for cut in cuts if cut >= 0), default=len(text))]

    def _sees_stop(self, token_id: int) -> bool:
        """Decodes the last tokens only; each shows a byte or more, so a stop spans at most its bytes."""
        if token_id in self._special_ids:
            return False
        self._visible_ids.append(token_id)
        tail = self._decode(self._visible_ids[-self._window :])
        if not any(stop in tail for stop in self._stops):
            return False
        whole = self._whole_text()  # the tail may show text of the prompt
        return any(stop in whole for stop in self._stops)

    def _whole_text(self) -> str:
        before = self._decode(list(self._context))
        whole = self._decode([*self._context, *self.token_ids])
        return whole[len(before) :] if whole.startswith(before) else self._decode(self.token_ids)

    def _decode(self, ids: list[int]) -> str:
        assert self._tokenizer is not None
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
