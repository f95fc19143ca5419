"""The command `planner`: output, files, exit codes, and mistakes that end in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hwprofiles.profile import load_profile
from hwprofiles.yaml_io import from_plain
from planner.cli import main
from planner.plan import Plan, load_plan
from planner.report import report_json
from tests.planner.problems import ON_CPU, ON_GPU, policy_of, small_t4
from tests.planner.runs import report_of

ROOT = Path(__file__).parents[2]
T4 = ("--hw", "t4-host")
SMALL = ("--model", "opt-125m", *T4, "--prompt-len", "32", "--gen-len", "8")
GIVEN = ("--percent", "0", "100", "0", "100", "0", "100", "--gpu-batch-size", "4", "--num-gpu-batches", "2")


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line of a mistake; its exit status is 2 and stdout stays empty."""
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_search_writes_a_plan_and_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table names policy, splits, memory and prediction; the file is the plan."""
    path = tmp_path / "plan.yaml"
    assert main(["search", *SMALL, "--gpu-mem", "1GB", "--num-prompts", "16", "-o", str(path)]) == 0
    shown = capsys.readouterr().out
    words = ("requested", "realised", "peak", "limit", "prefill", "decode", "bound by", "Throughput", "4-bit")
    assert all(word in shown for word in words if word != "4-bit")
    assert "--weight-bits 4 --kv-bits 4" in shown
    plan = load_plan(path)
    assert plan.policy.block_size == 16
    assert plan.hardware.gpu_bytes == 10**9


def test_a_plan_loads_back_to_the_same_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """YAML and JSON are the same plan, and writing it again gives the same text."""
    path = tmp_path / "plan.yaml"
    assert main(["estimate", *SMALL, *GIVEN, "--json", "-o", str(path)]) == 0
    captured = capsys.readouterr()
    plan = load_plan(path)
    assert from_plain(json.loads(captured.out), Plan, "stdout") == plan
    assert plan.to_yaml() == path.read_text()
    assert plan.model.spec().num_layers == 12


def test_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe gets the plan and nothing else; the warning about the host goes to stderr."""
    assert main(["search", *SMALL, "--num-prompts", "4", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["policy"]["weight_bits"] == 16
    assert "warning: profile t4-host" in captured.err


def test_an_estimate_prices_flexgens_six_percents(capsys: pytest.CaptureFixture[str]) -> None:
    """Shares are in the order weights, cache, activations on gpu and cpu; what is left is on disk."""
    percents = ("--percent", "20", "50", "0", "100", "100", "0")
    options = ("--gpu-batch-size", "2", "--num-gpu-batches", "1", "--cpu-attention", "on", "--kv-bits", "4")
    assert main(["estimate", *SMALL, *percents, *options, "--json"]) == 0
    policy = json.loads(capsys.readouterr().out)["policy"]
    assert policy["weights"] == pytest.approx({"gpu": 0.2, "cpu": 0.5, "disk": 0.3})
    assert policy["cache"] == {"gpu": 0, "cpu": 1, "disk": 0}
    assert policy["activations"] == {"gpu": 1, "cpu": 0, "disk": 0}
    assert (policy["cpu_attention"], policy["kv_bits"], policy["weight_bits"]) == (1.0, 4, 16)


def test_a_model_can_be_a_config_or_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--model takes a path as it takes a name, and --dtype overrides the config's."""
    config = {"model_type": "opt", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | {"ffn_dim": 128, "vocab_size": 100, "word_embed_proj_dim": 64}))
    for model in (path, tmp_path):
        argv = ["estimate", "--model", str(model), *T4, *GIVEN, "--dtype", "float16", "--json"]
        assert main(argv) == 0
        found = json.loads(capsys.readouterr().out)["model"]
        assert (found["name"], found["dtype"]) == (tmp_path.name, "float16")


FIELD = ("--model", "opt-30b", *T4, "--percent", "20", "80", "0", "100", "0", "100", "--gpu-batch-size", "48")


def test_the_field_report_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """OPT-30B in four gpu batches of 48 on 125 GB: the sum, and 4 bits as what fits."""
    line = fails(
        capsys, "estimate", *FIELD, "--num-gpu-batches", "4", "--cpu-mem", "125GB", "--gpu-mem", "14GB"
    )
    assert "= 179.3 GiB" in line
    assert "Nearest that fits:" in line


def test_a_search_that_finds_nothing_says_what_would_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, the short tier, and remedies."""
    line = fails(capsys, "search", "--model", "opt-175b", *T4, "--disk", "0GB")
    assert "short by" in line
    assert "on cpu instead of 189.8 GiB" in line
    assert "--weight-bits 4" in line


MISTAKES = {
    "unknown model": (("search", "--model", "opt-3b", *T4), "opt-30b"),
    "unknown profile": (("search", "--model", "opt-125m", "--hw", "t5-host"), "t4-host"),
    "percents over 100": (
        ("estimate", *SMALL, "--percent", "60", "50", "0", "100", "0", "100", *GIVEN[7:]),
        "--percent for weights is 60 on gpu and 50 on cpu, 110 together",
    ),
    "negative percent": (
        ("estimate", *SMALL, "--percent", "0", "100", "-5", "100", "0", "100", *GIVEN[7:]),
        "--percent for cache is -5 on gpu",
    ),
    "negative size": (("search", *SMALL, "--gpu-mem", "-3GB"), "size '-3GB' must not be negative"),
    "size without sense": (("search", *SMALL, "--cpu-mem", "lots"), "size 'lots' is not understood"),
    "too long": (("search", *SMALL, "--prompt-len", "2048"), "opt-125m has 2048 positions"),
    "no prompts": (("search", *SMALL, "--num-prompts", "0"), "num_prompts is 0"),
    "empty prompt": (("search", *SMALL, "--prompt-len", "0"), "set --prompt-len"),
    "nothing to generate": (("search", *SMALL, "--gen-len", "0"), "set --gen-len"),
    "no gpu batch": (
        ("estimate", *SMALL, *GIVEN[:7], "--gpu-batch-size", "0", *GIVEN[9:]),
        "gpu_batch_size is 0",
    ),
    "no latency": (("search", *SMALL, "--max-latency", "0"), "set --max-latency"),
    "gpu cap without gpu": (
        ("search", "--model", "opt-125m", "--hw", "two-core", "--gpu-mem", "1GB"),
        "has no GPU; leave out --gpu-mem",
    ),
    "gpu share without gpu": (
        ("estimate", "--model", "opt-125m", "--hw", "two-core", "--percent", "20", "80", *GIVEN[3:]),
        "has no GPU, but 20 percent of weights",
    ),
    "unwritable output": (("estimate", *SMALL, *GIVEN, "-o", "/nowhere/plan.yaml"), "cannot be written"),
    "missing report": (("calibrate", *T4, "/nowhere/report.json", "-o", "/tmp/hw.yaml"), "cannot be read"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each names the value and the remedy."""
    argv, complaint = MISTAKES[name]
    assert complaint in fails(capsys, *argv)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("a: [", "not valid YAML"), ("- 1", "expected a mapping"), ("schema_version: 9", "schema_version is 9")],
)
def test_a_malformed_profile_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    """The error names the file."""
    path = tmp_path / "hw.yaml"
    path.write_text(text)
    line = fails(capsys, "search", "--model", "opt-125m", "--hw", str(path))
    assert str(path) in line
    assert complaint in line


def test_a_failed_search_leaves_an_earlier_plan_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was written before is still there after a mistake."""
    path = tmp_path / "plan.yaml"
    path.write_text("earlier")
    fails(capsys, "search", "--model", "opt-175b", *T4, "--disk", "0GB", "-o", str(path))
    assert path.read_text() == "earlier"


def test_calibrate_writes_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table shows the error before and after; the file is the profile with factors."""
    profile = small_t4()
    (tmp_path / "hw.yaml").write_text(profile.to_yaml())
    report = report_of(profile, policy_of(ON_CPU, ON_CPU, ON_GPU), {"h2d": 2.0, "gpu": 1.5})
    (tmp_path / "report.json").write_text(report_json(report))
    hw, out = str(tmp_path / "hw.yaml"), str(tmp_path / "new.yaml")
    assert main(["calibrate", "--hw", hw, str(tmp_path / "report.json"), "-o", out]) == 0
    shown = capsys.readouterr().out
    assert "before" in shown
    assert "after" in shown
    calibration = load_profile(out).calibration
    assert calibration is not None
    assert calibration.factors["h2d"] > 1.5


def test_the_module_runs() -> None:
    """`python -m planner` is the command."""
    command = [sys.executable, "-m", "planner", "estimate", *SMALL, *GIVEN, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["schema_version"] == 1


def test_a_search_needs_no_torch() -> None:
    """The largest model is planned in a process that never imports torch."""
    code = (
        "import sys; from planner.cli import main; "
        "status = main(['search', '--model', 'opt-175b', '--hw', 't4-host']); "
        "print('torch' in sys.modules, 'transformers' in sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
    assert "disk_read" in done.stdout
