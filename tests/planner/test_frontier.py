"""The frontier: complete, in order, and written as a page, a picture or JSON that need nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pytest

from planner.cli import main
from planner.frontier import Point, frontier, latency_s
from planner.frontier_file import check_path, write
from planner.plan import Plan
from planner.problem import Problem
from planner.request import Request
from planner.search import score, search
from tests.planner.problems import GB, MB, ON_CPU, ON_GPU, policy_of, problem_of, small_opt

ROOT = Path(__file__).parents[2]
SMALL = ("--model", "opt-125m", "--hw", "t4-host", "--prompt-len", "32", "--gen-len", "8")


def points_of(problem: Problem, request: Request | None = None) -> tuple[Point, ...]:
    """Search, then the frontier from what it met."""
    met: list[Plan] = []
    request = request or Request()
    chosen = search(problem, request, keep=met.append)
    assert chosen is not None
    assert chosen.policy in [plan.policy for plan in met]
    return frontier(problem, request, chosen, met)


@pytest.fixture(scope="module")
def problem() -> Problem:
    """A model of which about a third fits the GPU."""
    return problem_of(small_opt(), gpu=140 * MB, cpu=1 * GB, disk=2 * GB, prompt_len=64, gen_len=16)


@pytest.fixture(scope="module")
def points(problem: Problem) -> tuple[Point, ...]:
    """Its frontier."""
    return points_of(problem)


def test_efficient_is_who_nobody_beats(problem: Problem, points: tuple[Point, ...]) -> None:
    """Each pair compared: an efficient point has no other with less latency and as much throughput."""
    for point in points:
        beaten = any(
            other.latency_s <= point.latency_s
            and other.tokens_per_s >= point.tokens_per_s
            and (other.latency_s, other.tokens_per_s) != (point.latency_s, point.tokens_per_s)
            for other in points
        )
        assert point.is_efficient == (not beaten)
        assert point.latency_s == latency_s(point.plan)
        assert point.tokens_per_s == score(problem, point.plan)
        assert point.plan.ledger.shortfalls(problem.target) == {}
    assert [point.is_chosen for point in points].count(True) == 1
    assert list(points) == sorted(points, key=lambda point: point.latency_s)


def test_no_policy_of_a_grid_lies_beyond(problem: Problem, points: tuple[Point, ...]) -> None:
    """Brute force: what fits among simple policies has a point of the frontier about as quick and as fast."""
    sizes, batches, splits = (1, 2, 5, 8, 16, 32, 64), (1, 2, 4, 8), (ON_GPU, ON_CPU)
    for size, count, weights, cache in product(sizes, batches, splits, splits):
        policy = policy_of(weights, cache, ON_GPU, size=size, batches=count, prefill_rows=size)
        plan = problem.plan(policy)
        if plan.ledger.shortfalls(problem.target):
            continue
        near = [point.tokens_per_s for point in points if point.latency_s <= 1.25 * latency_s(plan)]
        assert max(near) >= 0.98 * score(problem, plan)


def test_a_limit_on_latency_chooses_but_does_not_cut() -> None:
    """With --max-latency the chosen plan keeps it, and the frontier still shows what more would bring."""
    problem = problem_of(small_opt(2), gpu=90 * MB, cpu=1 * GB, num_prompts=8, prompt_len=64, gen_len=16)
    problem = replace(problem, rates=replace(problem.rates, operation_s=0.0))  # else no block is much shorter
    fastest = search(problem, Request())
    assert fastest is not None
    limit = 0.9 * latency_s(fastest)
    limited = points_of(problem, Request(max_latency_s=limit))
    assert next(point for point in limited if point.is_chosen).latency_s <= limit
    assert max(point.tokens_per_s for point in limited) >= 0.99 * score(problem, fastest)


class Page(HTMLParser):
    """Collects a page's attributes by name, ids and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.values: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the attributes; tags that load something are counted as `loads`."""
        for name, value in attrs:
            self.values.setdefault(name, []).append(value or "")
        if tag in ("link", "img", "iframe", "object", "embed"):
            self.values.setdefault("loads", []).append(tag)


def test_the_page_stands_alone(points: tuple[Point, ...], tmp_path: Path) -> None:
    """Nothing is loaded; every drawn point has its row with the policy, and ids are unique."""
    path = tmp_path / "frontier.html"
    write(path, points)
    text = path.read_text()
    page = Page(text)
    assert "loads" not in page.values
    assert "src" not in page.values
    assert all(link.startswith("#") for name in ("href", "xlink:href") for link in page.values.get(name, ()))
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", text)
    ids = page.values["id"]
    assert len(ids) == len(set(ids))
    for index, point in enumerate(points):
        assert f"row-point-{index}" in ids
        if point.is_efficient or point.is_chosen:
            assert f"point-{index}" in ids
    chosen = next(point for point in points if point.is_chosen).plan.policy
    row = re.search(r'<tr[^>]*class="chosen".*?</tr>', text)
    assert row
    assert f"{chosen.gpu_batch_size} x {chosen.num_gpu_batches} = {chosen.block_size}" in row[0]
    ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])


def test_the_picture_is_a_png(points: tuple[Point, ...], tmp_path: Path) -> None:
    """The suffix decides, in either case of letters; a single point can be drawn as well."""
    for name, drawn in (("a.png", points), ("b.PNG", points[:1])):
        write(tmp_path / name, drawn)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n")


def test_a_model_with_markup_in_its_name(points: tuple[Point, ...], tmp_path: Path) -> None:
    """Names are text, in the page and in the drawing."""
    plan = replace(points[0].plan, model=replace(points[0].plan.model, name="<b>&$x$"))
    write(tmp_path / "a.html", (replace(points[0], plan=plan),))
    text = (tmp_path / "a.html").read_text()
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;" in text


def test_the_command_writes_what_programs_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--frontier x.json` holds the chosen plan's policy as the plan on stdout does, which stays JSON."""
    path = tmp_path / "frontier.json"
    assert main(["search", *SMALL, "--num-prompts", "12", "--json", "--frontier", str(path)]) == 0
    plan = json.loads(capsys.readouterr().out)
    found = json.loads(path.read_text())
    assert (found["model"], found["workload"]["num_prompts"]) == ("opt-125m", 12)
    chosen = [point for point in found["points"] if point["is_chosen"]]
    assert [point["policy"] for point in chosen] == [plan["policy"]]
    assert chosen[0]["memory_bytes"]["gpu"] > 0


@pytest.mark.parametrize("name", ["frontier.svg", "frontier", "nowhere/frontier.html"])
def test_a_file_that_cannot_be_written(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another suffix, or a directory that is not there, is said before anything is searched."""
    assert main(["search", *SMALL, "--frontier", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert (".html, .png or .json" in error) == ("nowhere" not in name)
    check_path(tmp_path / "fine.html")


def test_a_search_without_a_frontier_does_without_matplotlib() -> None:
    """Drawing is imported only where it is asked for."""
    code = (
        "import sys; from planner.cli import main; "
        f"main(['search', *{SMALL!r}, '--num-prompts', '4', '--json']); "
        "print('matplotlib' in sys.modules, 'jinja2' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "False False"
