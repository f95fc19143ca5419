"""Handover: PuLP's interface to HiGHS, through which the rows of a problem go all at once.

PuLP's own hands them over one by one, which takes longer than HiGHS needs to solve a small LP.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import inf

import numpy as np
import pulp
from numpy.typing import NDArray


class HiGHS(pulp.HiGHS):  # type: ignore[misc]  # PuLP has no types
    """PuLP's interface for what is to be minimised over continuous variables."""

    def buildSolverModel(self, lp: pulp.LpProblem) -> None:
        """Fill the solver's model; PuLP calls this, and reads the answer by the indices that are given here."""
        columns, rows = lp.variables(), lp.constraints()
        for numbered in (columns, rows):
            for index, each in enumerate(numbered):
                each.index = index
        costs = [lp.objective.get(column, 0.0) for column in columns]
        lowest, highest = [column.lowBound for column in columns], [column.upBound for column in columns]
        bounds = _floats(lowest, -inf), _floats(highest, inf)
        lp.solverModel.addCols(len(columns), _floats(costs), *bounds, 0, _ints([]), _ints([]), _floats([]))
        least, most = [row.getLb() for row in rows], [row.getUb() for row in rows]
        starts = [0, *accumulate(len(row) for row in rows)]
        indices = [column.index for row in rows for column in row]
        factors = [factor for row in rows for factor in row.values()]
        terms = len(indices), _ints(starts[:-1]), _ints(indices), _floats(factors)
        lp.solverModel.addRows(len(rows), _floats(least, -inf), _floats(most, inf), *terms)


def _floats(values: Sequence[float | None], without: float = 0.0) -> NDArray[np.float64]:
    return np.array([without if value is None else value for value in values], dtype=np.float64)


def _ints(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)
