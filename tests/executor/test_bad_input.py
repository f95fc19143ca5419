"""Every bad input that reaches the executor: one line that names the remedy, exit 2, earlier output intact."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from executor.cli import main
from hwprofiles.units import KIB
from planner.plan import Plan
from planner.policy import Split
from tests.executor.jobs import TEXTS, plan_for, save_checkpoint, write_plan, write_prompts
from tests.planner.problems import small_t4

WEIGHTS = "model.safetensors"


@dataclass
class Case:
    """A job that would run: each test spoils one thing of it."""

    directory: Path
    model: Path
    plan: Plan
    plan_path: Path
    prompts: Path
    output: Path
    offload: Path

    def words(self) -> list[str]:
        """The command."""
        return ["run", str(self.plan_path), "--model-path", str(self.model), "--input", str(self.prompts),
                "--output", str(self.output), "--offload-dir", str(self.offload)]  # fmt: skip


@pytest.fixture(scope="module")
def original(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A job of three prompts, the first of them finished by an earlier run."""
    directory = tmp_path_factory.mktemp("job")
    model = save_checkpoint(directory / "model", tokenizer)
    plan = plan_for(model)
    case = Case(
        directory=directory,
        model=model,
        plan=plan,
        plan_path=write_plan(directory / "plan.yaml", plan),
        prompts=write_prompts(directory / "p.jsonl", TEXTS[:1]),
        output=directory / "r.jsonl",
        offload=directory / "offload",
    )
    case.offload.mkdir()
    with sigterm_kept():
        assert main(case.words()) == 0
    write_prompts(case.prompts, TEXTS[:3])
    return case


@pytest.fixture
def case(original: Case, tmp_path: Path) -> Case:
    """A copy to spoil."""
    shutil.copytree(original.directory, tmp_path / "job")
    moved = tmp_path / "job"
    return Case(
        directory=moved,
        model=moved / "model",
        plan=original.plan,
        plan_path=moved / "plan.yaml",
        prompts=moved / "p.jsonl",
        output=moved / "r.jsonl",
        offload=moved / "offload",
    )


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Leave the test process its own handling of SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_error(
    words: list[str], expected: tuple[str, ...], capsys: pytest.CaptureFixture[str], status: int = 2
) -> None:
    """The command fails with one line on stderr that holds all of `expected`."""
    capsys.readouterr()
    with sigterm_kept():
        assert main(words) == status
    errors = capsys.readouterr().err.strip()
    last = errors.splitlines()[-1]
    assert last.startswith("error: "), errors
    assert "Traceback" not in errors
    for text in expected:
        assert text in last


def edit_plan(old: str, new: str) -> Callable[[Case], None]:
    """Replace text in plan.yaml."""

    def spoil(case: Case) -> None:
        text = case.plan_path.read_text()
        assert old in text
        case.plan_path.write_text(text.replace(old, new, 1))

    return spoil


def plan_text(text: str) -> Callable[[Case], None]:
    """Another plan.yaml altogether."""
    return lambda case: void(case.plan_path.write_text(text))


def void(_: object) -> None:
    """For lambdas that must return None."""


def prompts(*lines: object) -> Callable[[Case], None]:
    """Another prompts file; text goes in as it is, other values as JSON."""

    def spoil(case: Case) -> None:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        case.prompts.write_text("".join(text + "\n" for text in texts))

    return spoil


def truncated(case: Case) -> None:
    """The weights' file is cut short."""
    os.truncate(case.model / WEIGHTS, (case.model / WEIGHTS).stat().st_size - 4 * KIB)


def without_a_tensor(case: Case) -> None:
    """One tensor is missing."""
    tensors = load_file(case.model / WEIGHTS)
    del tensors["model.decoder.layers.1.fc1.weight"]
    save_file(tensors, case.model / WEIGHTS)


def with_a_wrong_shape(case: Case) -> None:
    """One tensor has another shape."""
    tensors = load_file(case.model / WEIGHTS)
    name = "model.decoder.layers.1.fc1.weight"
    tensors[name] = tensors[name].T.contiguous()
    save_file(tensors, case.model / WEIGHTS)


def with_a_missing_shard(case: Case) -> None:
    """The index names a file that is not there."""
    (case.model / WEIGHTS).rename(case.model / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (case.model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def without_tokenizer(case: Case) -> None:
    """No tokenizer beside the checkpoint."""
    for path in case.model.glob("tokenizer*"):
        path.unlink()


def for_a_gpu(case: Case) -> None:
    """The plan is for a real GPU."""
    hardware = replace(
        case.plan.hardware, emulated=False, name="t4-host", context_bytes=small_t4().gpus[0].context_bytes
    )
    write_plan(case.plan_path, replace(case.plan, hardware=hardware))


def other_model(case: Case) -> None:
    """The plan is for a model of another size."""
    write_plan(case.plan_path, plan_for(case.model))
    config = json.loads((case.model / "config.json").read_text())
    (case.model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))


def foreign_output(case: Case) -> None:
    """The results file is of another job."""
    prompts({"prompt": "Once", "custom_id": "mine"})(case)


CASES: dict[str, tuple[Callable[[Case], None], tuple[str, ...]]] = {
    "plan is not YAML": (plan_text("a: ["), ("plan.yaml", "not valid YAML")),
    "plan is a list": (plan_text("- 1"), ("plan.yaml", "expected a mapping")),
    "plan is missing": (lambda case: case.plan_path.unlink(), ("plan.yaml", "cannot be read")),
    "plan has an unknown key": (edit_plan("policy:", "colour: red\npolicy:"), ("plan.yaml", "colour")),
    "plan has a misspelt key": (edit_plan("kv_bits: 16", "kv_bitz: 16"), ("plan.yaml.policy", "kv_bitz")),
    "plan lacks a key": (edit_plan("  gpu_batch_size: 4\n", ""), ("plan.yaml.policy", "gpu_batch_size")),
    "plan is of a newer schema": (
        edit_plan("schema_version: 1", "schema_version: 99"),
        ("schema_version is 99", "reads 1", "write it again"),
    ),
    "plan is no plan": (edit_plan("schema_version: 1\n", ""), ("schema_version is missing",)),
    "split of 1.5": (edit_plan("gpu: 0.3, cpu: 0.3, disk: 0.4", "gpu: 0.8, cpu: 0.3, disk: 0.4"), ("sum to 1.5",)),
    "negative batch": (edit_plan("gpu_batch_size: 4", "gpu_batch_size: -4"), ("gpu_batch_size is -4",)),
    "negative length": (edit_plan("gen_len: 6", "gen_len: -6"), ("gen_len is -6",)),
    "batch is no number": (edit_plan("gpu_batch_size: 4", "gpu_batch_size: four"), ("gpu_batch_size", "'four'")),
    "edited batches": (edit_plan("num_gpu_batches: 2", "num_gpu_batches: 3"), ("num_gpu_batches 3", "search again")),
    "edited rows": (edit_plan("gpu_batch_size: 4", "gpu_batch_size: 5"), ("gpu_batch_size 5", "search again")),
    "edited layers": (edit_plan("weight_tiers: [", "weight_tiers: [gggg, "), ("weight_tiers", "3 layers")),
    "edited slots": (edit_plan("weight_slots: 2", "weight_slots: 4"), ("its ledger says", "planner search again")),
    "plan for a GPU": (for_a_gpu, ("t4-host", "no CUDA device", "hwprofile measure")),
    "plan for another model": (other_model, ("num_hidden_layers 2", "plan again with --model")),
    "no prompts": (prompts(), ("p.jsonl: zero prompts", "write one JSON object a line")),
    "only blank lines": (prompts("", "  "), ("p.jsonl: zero prompts",)),
    "prompts file is missing": (lambda case: case.prompts.unlink(), ("p.jsonl: cannot be read", "check --input")),
    "line is no JSON": (prompts({"prompt": "a"}, "{'prompt': 1}"), ("p.jsonl:2: not valid JSON", "one object a line")),
    "line is no object": (prompts("[1]"), ("p.jsonl:1:", "expected an object")),
    "line has an unknown key": (prompts({"prompt": "a"}, {"promt": "b"}), ("p.jsonl:2:", "did you mean 'prompt'?")),
    "empty prompt": (prompts({"prompt": ""}), ("p.jsonl:1: the prompt is empty", "at least one")),
    "max_tokens 0": (prompts({"prompt": "a", "max_tokens": 0}), ("p.jsonl:1: max_tokens is 0", "at least 1")),
    "id twice": (
        prompts({"prompt": "a", "custom_id": "x"}, {"prompt": "b", "custom_id": "x"}),
        ("p.jsonl:2:", "also on line 1", "give each line its own"),
    ),
    "prompt beyond the positions": (
        prompts({"prompt": [3] * 126}),
        ("p.jsonl:1:", "126 tokens + max_tokens 6", "128 positions", "shorten the prompt by 4 tokens"),
    ),
    "prompt beyond the plan": (
        prompts({"prompt": [3] * 33}),
        ("request-1", "33 tokens", "made for 32", "--prompt-len 33"),
    ),
    "max_tokens beyond the plan": (
        prompts({"prompt": "a", "max_tokens": 7}),
        ("max_tokens is 7", "made for 6", "--gen-len 7"),
    ),
    "chat without a template": (
        prompts({"messages": [{"role": "user", "content": "hi"}]}),
        ("p.jsonl:1:", "no chat template", "prompt instead of messages"),
    ),
    "no weights": (lambda case: (case.model / WEIGHTS).unlink(), ("neither model.safetensors nor",)),
    "truncated weights": (truncated, (WEIGHTS, "truncated or damaged", "download")),
    "no header": (lambda case: os.truncate(case.model / WEIGHTS, 5), (WEIGHTS, "truncated or damaged")),
    "missing tensor": (without_a_tensor, ("layers.1.fc1.weight is missing",)),
    "wrong shape": (with_a_wrong_shape, ("layers.1.fc1.weight has shape [64, 96]", "needs [96, 64]")),
    "missing shard": (with_a_missing_shard, ("1 of the 2 files", "model-00002-of-00002", "download them")),
    "no tokenizer": (without_tokenizer, ("no ", "tokenizer", "leave out --input")),
    "no config": (lambda case: (case.model / "config.json").unlink(), ("config.json",)),
    "config is no JSON": (lambda case: void((case.model / "config.json").write_text("{")), ("config.json",)),
    "no such model": (lambda case: void(case.model.rename(case.directory / "x")), ("no such directory", "hub id")),
    "results of another job": (foreign_output, ("r.jsonl:1:", "not in this job", "another --output")),
    "no offload directory": (lambda case: case.offload.rmdir(), ("offload", "does not exist", "create it")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with the value, the limit and the remedy; results of an earlier run stay as they are."""
    spoil, expected = CASES[name]
    before = case.output.read_bytes()
    spoil(case)
    check_error(case.words(), expected, capsys)
    assert case.output.read_bytes() == before
    assert not case.offload.is_dir() or list(case.offload.iterdir()) == []


FLAGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no model": (("run", "{plan}"), ("either --model-path DIR or --dummy-weights",)),
    "two models": (("run", "{plan}", "--model-path", "{model}", "--dummy-weights"), ("either --model-path",)),
    "prompts for dummy weights": (
        ("run", "{plan}", "--dummy-weights", "--input", "{prompts}"),
        ("--input needs a tokenizer", "--model-path DIR"),
    ),
    "report nowhere": (
        ("run", "{plan}", "--model-path", "{model}", "--report", "{dir}/no/report.json"),
        ("no/report.json", "is not a directory", "create it"),
    ),
    "results nowhere": (
        ("run", "{plan}", "--model-path", "{model}", "--output", "{dir}/no/r.jsonl"),
        ("no/r.jsonl: cannot be written", "create the directory"),
    ),
    "results are a directory": (
        ("run", "{plan}", "--model-path", "{model}", "--output", "{dir}"),
        ("cannot be written (Is a directory)", "another --output"),
    ),
    "read-only offload directory": (
        ("run", "{plan}", "--model-path", "{model}", "--offload-dir", "/proc/self"),
        ("/proc/self", "--offload-dir"),
    ),
    "offload directory is a file": (
        ("run", "{plan}", "--model-path", "{model}", "--offload-dir", "{plan}"),
        ("plan.yaml does not exist", "choose another"),
    ),
    "verify without a model": (("verify", "{plan}"), ("give --model-path DIR",)),
    "verify nothing": (("verify", "{plan}", "--model-path", "{model}", "--num-prompts", "0"), ("--num-prompts is 0",)),
    "no such report": (("report", "{dir}/report.json"), ("report.json: cannot be read",)),
    "report of another kind": (("report", "{prompts}"), ("p.jsonl", "not valid JSON")),
}  # fmt: skip


@pytest.mark.parametrize("name", FLAGS)
def test_bad_flags(name: str, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags that do not go together, and places that cannot be written, before any work is done."""
    words, expected = FLAGS[name]
    places = {"plan": case.plan_path, "model": case.model, "prompts": case.prompts, "dir": case.directory}
    check_error([word.format(**places) for word in words], expected, capsys)


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: as on a full disk, a write fails in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_full_disk_for_offload_files(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """The disk tier's files are reserved before anything else: no room is said with what is needed."""
    before = case.output.read_bytes()
    with largest_file(8 * KIB):
        check_error(case.words(), ("offload", "cannot take", "plan with a smaller --disk"), capsys)
    assert case.output.read_bytes() == before
    assert list(case.offload.iterdir()) == []


def test_full_disk_for_results(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines written before the disk was full stay, the torn one goes; with room again the job is finished."""
    in_memory = Split(gpu=0.5, cpu=0.5, disk=0)
    write_plan(case.plan_path, plan_for(case.model, gpu_batch_size=1, num_gpu_batches=1, splits=in_memory))
    write_prompts(case.prompts, TEXTS)
    before = case.output.read_bytes()
    with largest_file(len(before) * 4 + len(before) // 2):
        check_error(
            case.words(), ("r.jsonl: ", "of 8 results, which are kept", "run the same command again"), capsys
        )
    lines = case.output.read_bytes()
    assert lines.startswith(before)
    assert lines.endswith(b"\n")
    assert 2 <= lines.count(b"\n") < 8
    with sigterm_kept():
        assert main(case.words()) == 0
    assert case.output.read_bytes().startswith(lines)
    assert case.output.read_bytes().count(b"\n") == 8
