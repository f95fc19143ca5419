"""Handover: the rows of an LP to HiGHS, all at once, and its answer back. The only module that imports highspy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import highspy
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
"""A value of each variable; or a linear expression of them, the last of its terms being the constant."""
Matrix = NDArray[np.float64]
"""Linear expressions, one a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What is to be minimised: the objective over at_most . (x, 1) <= 0, equal . (x, 1) = 0 and lower <= x <= upper."""

    objective: Vector
    at_most: Matrix
    equal: Matrix
    lower: Vector
    upper: Vector


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no solution, as the solver or the check of its answer says."""

    reason: str
    infeasible: bool = False


def minimised(rows: Rows) -> Vector | Failure:
    """The optimum as HiGHS has it; it is not handed variables that are 0."""
    used = np.flatnonzero(rows.upper > 0)
    terms = np.concatenate((rows.at_most, rows.equal))
    factors, most = terms[:, used], -terms[:, -1]
    least = np.concatenate((np.full(len(rows.at_most), -np.inf), most[len(rows.at_most) :]))
    filled = factors != 0
    starts = np.concatenate(([0], filled.sum(axis=1).cumsum()[:-1]))
    solver = _solver()
    solver.clearModel()
    solver.addCols(len(used), rows.objective[used], rows.lower[used], rows.upper[used], 0, [], [], [])
    solver.addRows(len(terms), least, most, filled.sum(), starts, filled.nonzero()[1], factors[filled])
    solver.run()
    status = solver.getModelStatus()
    if status != highspy.HighsModelStatus.kOptimal:
        text = solver.modelStatusToString(status)
        return Failure(f"the solver ends with {text!r}", status == highspy.HighsModelStatus.kInfeasible)
    answer = np.zeros(len(rows.upper))
    answer[used] = solver.getSolution().col_value
    return answer


@cache
def _solver() -> highspy.Highs:
    """One for all: making it takes a third as long as solving a small LP."""
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)  # there is little to share out
    solver.setOptionValue("presolve", "off")  # nor to simplify
    return solver
