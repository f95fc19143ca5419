"""One line of a results file: a completion in the form OpenAI's batch results have.

Form: platform.openai.com/docs/api-reference/batch/request-output, its body that of a chat or text completion.
"""

from __future__ import annotations

import json
import time
import uuid

from executor.sampling import Completion

# What every line begins with, by which a line that a kill cut short is known.
LINE_HEAD = b'{"id": "batch_req_'


def to_line(completion: Completion, *, model: str) -> bytes:
    """The line with its newline; without a text, that of the completion is its token ids."""
    request = completion.request
    text = " ".join(map(str, completion.token_ids)) if completion.text is None else completion.text
    answer = {"message": {"role": "assistant", "content": text}} if request.chat else {"text": text}
    prompt_tokens, completion_tokens = len(request.prompt_ids), len(completion.token_ids)
    body = {
        "id": f"{'chatcmpl' if request.chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if request.chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, **answer, "logprobs": None, "finish_reason": completion.finish_reason}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
    line = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": request.custom_id,
        "response": {"status_code": 200, "request_id": f"req_{uuid.uuid4().hex}", "body": body},
        "error": None,
    }
    return json.dumps(line).encode() + b"\n"
