"""The results file: its lines, resuming, and disks that refuse."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.results import ResultFile
from executor.sampling import Completion
from hwprofiles.errors import UserError
from planner.prompts import Request

_REQUESTS = [
    Request(custom_id=f"r-{index}-ö", index=index, prompt_ids=(1, 2, 3), max_tokens=4, chat=index % 2 == 1)
    for index in range(6)
]


def _complete(requests: list[Request]) -> list[Completion]:
    return [
        Completion(request=request, token_ids=(7, 8), text='a "quoted"\n😀', finish_reason="stop")
        for request in requests
    ]


def _open(path: Path) -> ResultFile:
    return ResultFile(path, _REQUESTS, model="tiny")


def _finish(path: Path, block_size: int = 2) -> None:
    with _open(path) as results:
        pending = results.pending
        for start in range(0, len(pending), block_size):
            results.append(_complete(pending[start : start + block_size]))


def _custom_ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()]


def test_lines_have_the_form_of_openais_batch_results(tmp_path: Path) -> None:
    """A text completion and a chat completion, each with choices, finish_reason and usage."""
    path = tmp_path / "out.jsonl"
    with _open(path) as results:
        results.append(_complete(_REQUESTS[:2]))
    text, chat = (json.loads(line) for line in path.read_bytes().splitlines())
    assert (text["custom_id"], text["error"], text["response"]["status_code"]) == ("r-0-ö", None, 200)
    assert text["id"].startswith("batch_req_")
    body = text["response"]["body"]
    assert (body["object"], body["model"]) == ("text_completion", "tiny")
    assert body["choices"] == [
        {"index": 0, "text": 'a "quoted"\n😀', "logprobs": None, "finish_reason": "stop"}
    ]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    body = chat["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": 'a "quoted"\n😀'}


def test_without_a_tokenizer_the_text_is_the_ids(tmp_path: Path) -> None:
    """Synthetic prompts get their token ids as text."""
    path = tmp_path / "out.jsonl"
    completion = Completion(request=_REQUESTS[0], token_ids=(7, 8), text=None, finish_reason="length")
    with _open(path) as results:
        results.append([completion])
    assert json.loads(path.read_text())["response"]["body"]["choices"][0]["text"] == "7 8"


def test_pending_shrinks_with_each_block(tmp_path: Path) -> None:
    """What has a line is no longer pending, now and after opening again."""
    path = tmp_path / "out.jsonl"
    with _open(path) as results:
        assert results.pending == _REQUESTS
        results.append(_complete(_REQUESTS[2:4]))
        assert results.pending == _REQUESTS[:2] + _REQUESTS[4:]
    with _open(path) as results:
        assert results.pending == _REQUESTS[:2] + _REQUESTS[4:]


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "out.jsonl"
    _finish(path)
    return path.read_bytes()


@given(st.data())
def test_a_run_killed_at_any_byte_can_be_finished(
    tmp_path_factory: pytest.TempPathFactory, whole_file: bytes, data: st.DataObject
) -> None:
    """Whatever a kill leaves of the file, running again gives one line for each request, whole lines kept."""
    path = tmp_path_factory.getbasetemp() / "killed.jsonl"
    torn = whole_file[: data.draw(st.integers(0, len(whole_file)))]
    kept = torn[: torn.rfind(b"\n") + 1]
    path.write_bytes(torn + data.draw(st.sampled_from([b"", b"\0\0\0"])))
    _finish(path)
    assert sorted(_custom_ids(path)) == sorted(request.custom_id for request in _REQUESTS)
    assert path.read_bytes().startswith(kept)


def test_a_finished_job_is_left_alone(tmp_path: Path, whole_file: bytes) -> None:
    """Running a finished job again adds nothing."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(whole_file)
    with _open(path) as results:
        assert results.pending == []
    assert path.read_bytes() == whole_file


def _spoil_second_line(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return lines[0] + lines[1][:30] + b"\n" + b"".join(lines[2:])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil_second_line, ":2: not a result line"),
        (lambda data: b"my notes\n" + data, ":1: not a result line"),
        (lambda data: data + b"my notes", ":7: not a result line"),
        (lambda data: b'{"custom_id": "r-0-\xc3\xb6", "body": {}}\n', ":1: not a result line"),
        (lambda data: data.replace(b"r-3-", b"q-3-"), ":4: custom_id 'q-3-ö' is not in this job"),
        (lambda data: data + data, ":7: custom_id 'r-0-ö' has a line already"),
    ],
)
def test_a_file_of_another_kind_is_not_touched(
    tmp_path: Path, whole_file: bytes, spoil: Callable[[bytes], bytes], message: str
) -> None:
    """A damaged line, text that is no result, a prompts file, another job's output: refused and kept."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(spoil(whole_file))
    before = path.read_bytes()
    with pytest.raises(UserError, match=message) as caught:
        _open(path)
    assert "choose another --output" in str(caught.value)
    assert path.read_bytes() == before


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    """The second is refused while the first is open, and let in after."""
    path = tmp_path / "out.jsonl"
    with _open(path), pytest.raises(UserError, match="another run is writing it"):
        _open(path)
    with _open(path) as results:
        assert results.pending == _REQUESTS


@pytest.mark.parametrize(
    ("name", "message"),
    [("none/out.jsonl", "No such file or directory.*create the directory"), ("", "Is a directory")],
)
def test_a_place_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    """A missing directory and a directory as file are named before anything runs."""
    with pytest.raises(UserError, match=message):
        _open(tmp_path / name)


def test_a_device_is_not_a_results_file() -> None:
    """What cannot be read back cannot be resumed."""
    with pytest.raises(UserError, match="not a regular file"):
        _open(Path("/dev/null"))


def test_a_read_only_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only file system is named before anything runs."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\); choose another"):
        _open(tmp_path / "out.jsonl")


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that takes a few bytes at a time still writes whole lines."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:100]))
    _finish(tmp_path / "out.jsonl")
    assert _custom_ids(tmp_path / "out.jsonl") == [request.custom_id for request in _REQUESTS]


def _fill_disk_after(num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """os.write takes `num_bytes` more, then says the disk is full."""
    write = os.write
    left = num_bytes

    def limited(fd: int, data: bytes) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(fd, bytes(data)[:left])
        left -= written
        return written

    monkeypatch.setattr(os, "write", limited)


@pytest.mark.parametrize("num_bytes", [0, 10, 700])
def test_a_full_disk_keeps_what_was_written(tmp_path: Path, num_bytes: int) -> None:
    """The block that does not fit is cut off whole, the lines before stay, and the job can be finished."""
    path = tmp_path / "out.jsonl"
    with _open(path) as results, pytest.MonkeyPatch.context() as patch:
        results.append(_complete(_REQUESTS[:2]))
        before = path.read_bytes()
        _fill_disk_after(num_bytes, patch)
        with pytest.raises(UserError, match="No space left on device after 2 of 6 results, which are kept"):
            results.append(_complete(_REQUESTS[2:4]))
        assert path.read_bytes() == before
        assert results.pending == _REQUESTS[2:]
    _finish(path)
    assert _custom_ids(path) == [request.custom_id for request in _REQUESTS]


def test_a_failed_fsync_is_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems tell only at fsync that there was no room."""
    path = tmp_path / "out.jsonl"

    def refuse(_: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with _open(path) as results:
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(UserError, match="Disk quota exceeded after 0 of 6"):
            results.append(_complete(_REQUESTS[:2]))
    assert path.read_bytes() == b""
