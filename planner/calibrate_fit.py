"""The fit of calibration: factors that a few runs cannot distort; docs/cost-model.md explains it.

Least squares on log(predicted / measured). Each kind's factor is drawn towards its resource's, each resource's
towards what is known without these runs: the measured rate. How strongly depends on the number of runs and on how
far they disagree, and on what predicts runs best that are held out; a run far from all others counts less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from planner.calibrate_runs import Priced, Run, Vector, folds_of
from planner.factors import CONTENTION, HANDOVER, LAUNCH, Factors, factor_of, resource_of
from planner.plan import PHASES, Phase
from planner.work import MAX_DECODE_GROUPS

PRIOR_NOISE = 0.3
"""Standard deviation of a run's log(measured / predicted) about what its factors say, before any run is seen."""
PRIOR_RUNS = 6.0
"""PRIOR_NOISE counts as so many observations of it."""
OUTLIER_Z = 3.5
"""Robust z score above which a run is an outlier (Iglewicz and Hoaglin, 1993)."""
OUTLIER_RUNS = 5
"""With fewer runs it cannot be told which is the wild one."""
_LEAST_MAD = 0.03
"""Runs that agree better than this are not told apart."""
_MAD_TO_SIGMA = 0.6745
_KIND_SPREAD, _RESOURCE_SPREAD = 0.25, 0.5
"""Standard deviation of log factors: of a kind about its resource, of a resource about the measured rate."""
_SPREADS = {LAUNCH: 0.5, HANDOVER: 0.5, CONTENTION: 0.3, "prefill": 0.05, "decode": 0.05}
_SHARES = (1.0, 0.5, 0.25, 0.1, 0.03)
"""Of these deviations: the next one is taken where runs held out are off by so much less."""
_SO_MUCH_LESS = 0.97
_FEWEST_FOLDS = 3
"""With fewer the deviations stay as they are."""
_ROBUST_FROM = 1.0
"""In standard deviations: from about here on, a row's pull no longer grows with its distance."""
_STEPS, _ROUNDS = 6, 2
_ENOUGH = 0.003
"""Steps end when no parameter has moved further."""
_COARSE_GROUPS = 2
"""Of decode passes: enough for slopes."""
_STEP = 1e-4
_DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Factors, and how much each run counted for them."""

    factors: dict[str, float]
    weights: tuple[Mapping[Phase, float], ...]
    """Of each run's phases: 1, or less for an outlier. A run counts as the least of them."""
    parameters: Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class _Linear:
    """The rows of some runs near a point: log(predicted / measured) = errors + slopes @ step."""

    runs: tuple[Run, ...]
    point: Vector
    errors: Vector
    slopes: Vector
    """[rows, parameters]."""

    def of(self, chosen: Sequence[int]) -> _Linear:
        """Of some of the runs."""
        starts = np.cumsum([0, *(len(run.logs) for run in self.runs)])
        rows = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in chosen])
        runs = tuple(self.runs[n] for n in chosen)
        return _Linear(runs=runs, point=self.point, errors=self.errors[rows], slopes=self.slopes[rows])

    def phase_errors(self, parameters: Vector) -> list[dict[Phase, float]]:
        """log(predicted / measured) of each run's phases at other parameters."""
        errors = self.errors + self.slopes @ (parameters - self.point)
        parts = np.split(errors, np.cumsum([len(run.logs) for run in self.runs])[:-1])
        return [
            dict(zip(run.measured, part.tolist(), strict=False))
            for run, part in zip(self.runs, parts, strict=True)
        ]


class _Settled(NamedTuple):
    """An answer of the linear problem."""

    parameters: Vector
    noise: float
    weights: tuple[Mapping[Phase, float], ...]
    """Of each run's phases."""


def _unsettled(linear: _Linear) -> _Settled:
    """Where a fit begins: all runs count, and are as far off as is expected before any is seen."""
    weights = tuple(dict.fromkeys(run.measured, 1.0) for run in linear.runs)
    return _Settled(linear.point, PRIOR_NOISE, weights)


class Fitting:
    """Runs as a function of parameters, each a log factor's distance from the one it is drawn towards.

    `known` are the factors that hold without these runs.
    """

    def __init__(self, known: Factors, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.used = [{*names, *map(resource_of, names)} for names in (run.factor_names() for run in runs)]
        self.names = sorted(set().union(*self.used))
        self.centre = np.log([factor_of(known, *name.split(".")) for name in self.names])
        self.spread = np.array([_spread(name) for name in self.names])
        self.tree = np.eye(len(self.names))
        """[factors, parameters]: a kind's log factor is its own parameter and its resource's."""
        for i, name in enumerate(self.names):
            self.tree[i, self.names.index(resource_of(name))] = 1.0
        self._priced: dict[tuple[str, int, bytes], Priced] = {}

    def fit(self, chosen: Sequence[int], start: Fit | None = None) -> Fit:
        """The factors that these runs and prior knowledge speak for, as far as some runs tell of others."""
        found = self._fit(chosen, start)
        folds = folds_of([self.runs[n] for n in chosen])
        if len(folds) < _FEWEST_FOLDS:
            return found
        best, share = math.inf, 1.0
        linear = self._linear(chosen, found.parameters)
        for less in _SHARES:
            error = self._within(less)._held_out(linear, folds)
            best, share = (error, less) if error < _SO_MUCH_LESS * best else (best, share)
        return found if share == 1.0 else self._within(share)._fit(chosen, found)

    def _within(self, share: float) -> Fitting:
        """The same with factors drawn more strongly towards what is known."""
        other = copy(self)
        other.spread = share * self.spread
        return other

    def _held_out(self, linear: _Linear, folds: Sequence[Sequence[int]]) -> float:
        """The mean error of phases whose runs are held out, near the point; a wild one counts as PRIOR_NOISE."""
        found = list[float]()
        for fold in folds:
            rest = linear.of([n for n in range(len(linear.runs)) if n not in fold])
            settled = self._settled(rest, _unsettled(rest))
            for of_run in linear.of(fold).phase_errors(settled.parameters):
                found += [min(abs(error), PRIOR_NOISE) for error in of_run.values()]
        return sum(found) / len(found)

    def _fit(self, chosen: Sequence[int], start: Fit | None = None) -> Fit:
        """Gauss-Newton, linear from step to step."""
        point = start.parameters if start else np.zeros(len(self.names))
        linear = self._linear(chosen, point)
        settled = _unsettled(linear)
        for _ in range(_STEPS):
            settled = self._settled(linear, settled)
            done = float(np.max(np.abs(settled.parameters - linear.point))) < _ENOUGH
            linear = self._linear(chosen, settled.parameters)
            if done:
                break
        logs = (self.centre + self.tree @ linear.point).tolist()
        return Fit(
            factors={name: round(math.exp(log), _DIGITS) for name, log in zip(self.names, logs, strict=True)},
            weights=settled.weights,
            parameters=linear.point,
        )

    def _settled(self, linear: _Linear, before: _Settled) -> _Settled:
        """The answer of the linear problem, from the weights and the noise of an answer before."""
        noise, weights, parameters = before.noise, before.weights, before.parameters
        for _ in range(_ROUNDS):
            parameters, noise = self._solve(linear, weights, noise)
            weights = tuple(_weights(linear, parameters))
        return _Settled(parameters, noise, weights)

    def _solve(
        self, linear: _Linear, weights: Sequence[Mapping[Phase, float]], noise: float
    ) -> tuple[Vector, float]:
        """The parameters under these weights and this noise, and the noise that then remains."""
        counts = [
            min(of_run.values()) * run.evidence for of_run, run in zip(weights, linear.runs, strict=True)
        ]
        scale = np.sqrt(np.concatenate(counts)) / noise
        slopes = np.vstack([scale[:, None] * linear.slopes, np.diag(1 / self.spread)])
        offset = np.concatenate([scale * (linear.errors - linear.slopes @ linear.point), 0 * self.spread])
        answer = least_squares(
            lambda x: offset + slopes @ x,
            linear.point,
            jac=lambda _: slopes,
            loss=_loss(len(scale)),
            f_scale=_ROBUST_FROM,
        )
        free = len(self.names) - np.trace(np.linalg.inv(answer.jac.T @ answer.jac) / self.spread**2)
        """Parameters that the runs decide, not the prior."""
        seen = max(0.0, float(noise**2 * scale @ scale - free))
        errors = linear.errors + linear.slopes @ (answer.x - linear.point)
        rest = noise**2 * scale**2 @ np.minimum(errors**2, (_ROBUST_FROM * PRIOR_NOISE) ** 2)
        return answer.x, math.sqrt((PRIOR_RUNS * PRIOR_NOISE**2 + float(rest)) / (PRIOR_RUNS + seen))

    def _linear(self, chosen: Sequence[int], point: Vector) -> _Linear:
        runs = tuple(self.runs[n] for n in chosen)
        rows = [run.predicted_logs(self._price(run, point)) for run in runs]
        slopes = [self._slopes(self.runs[n], self.used[n], point) for n in chosen]
        errors = np.concatenate([found - run.logs for found, run in zip(rows, runs, strict=True)])
        return _Linear(runs=runs, point=point, errors=errors, slopes=np.vstack(slopes) @ self.tree)

    def _slopes(self, run: Run, used: Collection[str], point: Vector) -> Vector:
        """[rows, factors]: of log(predicted) over log factors, priced coarsely."""
        whole = run.predicted_logs(self._price(run, point, num_groups=_COARSE_GROUPS))
        slopes = np.zeros((len(whole), len(self.names)))
        for i, name in enumerate(self.names):
            if name in used:
                moved = self._price(run, point, num_groups=_COARSE_GROUPS, moved=i)
                slopes[:, i] = (run.predicted_logs(moved) - whole) / _STEP
        return slopes

    def _price(
        self, run: Run, point: Vector, *, num_groups: int = MAX_DECODE_GROUPS, moved: int | None = None
    ) -> Priced:
        """The run's plan at a point, or with one log factor moved from it; runs alike are priced once."""
        logs = self.centre + self.tree @ point
        if moved is not None:
            logs[moved] += _STEP
        key = run.work, num_groups, logs.tobytes()
        if key not in self._priced:
            factors = dict(zip(self.names, np.exp(logs).tolist(), strict=True))
            self._priced[key] = run.predict(factors, num_groups)
        return self._priced[key]


def _spread(name: str) -> float:
    return _KIND_SPREAD if resource_of(name) != name else _SPREADS.get(name, _RESOURCE_SPREAD)


def _loss(num_rows: int) -> Callable[[Vector], Vector]:
    """scipy's loss and its two derivatives: soft_l1 on the first rows, which are measured; squares on the prior's."""

    def loss(z: Vector) -> Vector:
        rho = np.vstack([z, np.ones_like(z), np.zeros_like(z)])
        data = 1 + z[:num_rows]
        rho[:, :num_rows] = 2 * (np.sqrt(data) - 1), data**-0.5, -0.5 * data**-1.5
        return rho

    return loss


def _weights(linear: _Linear, parameters: Vector) -> list[dict[Phase, float]]:
    """1 for each phase of each run, less for one whose error is far from that of all other runs."""
    of_runs = linear.phase_errors(parameters)
    weights: list[dict[Phase, float]] = [{} for _ in of_runs]
    for phase in PHASES:
        having = [n for n, of_run in enumerate(of_runs) if phase in of_run]
        scores = _robust_z([of_runs[n][phase] for n in having])
        for n, z in zip(having, scores, strict=True):
            weights[n][phase] = min(1.0, (OUTLIER_Z / z) ** 2) if z > 0 else 1.0
    return weights


def _robust_z(errors: Sequence[float]) -> list[float]:
    """How far each is from the others' median, in standard deviations by their median distance from it."""
    if len(errors) < OUTLIER_RUNS:
        return [0.0 for _ in errors]
    far = np.abs(np.array(errors) - np.median(errors))
    found: list[float] = (_MAD_TO_SIGMA * far / max(_LEAST_MAD, float(np.median(far)))).tolist()
    return found
