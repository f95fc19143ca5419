"""Walk: gpu batch sizes and numbers of gpu batches, an LP for each, towards the best whole ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, product

from planner.candidate import Candidate, limits_of, most_sequences, tier_limits, ways_of
from planner.curve import Curve
from planner.lp import Program, Solution
from planner.policy import Bits
from planner.problem import Problem
from planner.relaxed import Relaxed
from planner.request import Request
from planner.resident import resident_sizes
from planner.shares import DISK_USES, DiskUse, Way
from planner.work import Choice

_GROUPS = 2
"""Groups of decode passes."""
_FIRST_SIZE = 4
_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of gpu batches that are tried, each with the gpu batch size that makes the block as large as wanted."""
_FEW = (1, 2, 3, 4, 6, 8)
_MOST_STARTS, _MOST_TRIES = 6, 12
"""Of these, those that fit."""
_NEAR = 1.03
"""Of the least time a sequence: what is beyond it by the free walk is not looked at more closely."""
_WORTH_ATTENDING = 0.001
"""Of the least time a sequence, for which attention on the CPU is followed up."""
_AS_GOOD = 1.005
"""Of the least time a sequence, for a glance."""
_WORTH_A_CHUNK = 0.003
_SMALLER_CHUNKS, _SMALLER_BLOCKS = (2, 4), (2, 4)
AT_HOME = Way(moves_activations=False, attends=False, disk="none")
Mode = tuple[bool, DiskUse]
"""Whether the CPU may attend rows, and what may be on disk."""


@dataclass(slots=True, kw_only=True)
class Walk:
    """The walk for one pair of bits; no LP is solved twice."""

    problem: Problem
    request: Request
    weight_bits: Bits
    kv_bits: Bits
    _programs: dict[tuple[int, int | None, int], Program] = field(default_factory=dict)
    _known: dict[tuple[int, int | None, int, Way], Candidate | None] = field(default_factory=dict)
    _failed: dict[Way, int] = field(default_factory=dict)

    def free(self, enough_s: float = math.inf) -> list[Curve]:
        """Of each mode, gpu batch sizes with the best number of gpu batches, whole or not.

        A mode that may use less of the disk takes no less time than one that may use more: it is only looked at for
        sizes with which that one takes at most `enough_s` a sequence.
        """
        curves: dict[Mode, list[Candidate]] = {}
        for size, widest in sorted(self.widest().items()):
            for mode, candidate in {**widest, **self._narrower(size, widest, enough_s)}.items():
                curves.setdefault(mode, []).append(candidate)
        found = {
            mode: Curve(curve)
            for mode, curve in curves.items()
            if any(_mode(candidate.way) == mode for candidate in curve)
        }
        return [curve for mode, curve in found.items() if not _is_idle(mode, found)]

    def widest(self) -> dict[int, dict[Mode, Candidate]]:
        """Gpu batch sizes with the best of each mode that may use all of the disk.

        Sizes quadruple until nothing fits; the neighbours of the best are added.
        """
        most, ways = (
            most_sequences(self.problem),
            [way for way in self._ways if way.disk == self._ways[0].disk],
        )
        found: dict[int, dict[Mode, Candidate]] = {}
        size = min(_FIRST_SIZE, most)
        while here := self._modes(size, ways):
            found[size] = here
            if size == most:
                break
            size = min(4 * size, most)
        best = min(found, key=lambda size: min(map(_seconds, found[size].values())), default=_FIRST_SIZE)
        for size in (best // 2, 2 * best, *((1,) if best <= _FIRST_SIZE else ())):
            if 1 <= size <= most and size not in found and (here := self._modes(size, ways)):
                found[size] = here
        return found

    @property
    def least_s(self) -> float:
        """Of a sequence, the number of gpu batches being free."""
        modes = (one for modes in self.widest().values() for one in modes.values())
        return min(map(_seconds, modes), default=math.inf)

    def whole(self, curve: Curve) -> list[Candidate]:
        """Whole numbers of gpu batches near the best of a mode, the most promising candidate first."""
        found = self._nearest(curve)
        if found:
            found += self._in_smaller_chunks(min(found, key=self.promise))
            best = self._climb(min(found, key=self.promise))
            found += [best, *self._variants(best)]
            better = min(found, key=self.promise)
            found += [] if better is best else [self._climb(better)]
            found += self._in_fewer_blocks(min(found, key=self.promise))
            found += self._in_larger_chunks(min(found, key=self.promise))
        if not found or self.request.max_latency_s is not None:
            found += self._singles(curve)
        return sorted(dict.fromkeys(found), key=self.promise)

    def glance(self, curve: Curve) -> list[Candidate]:
        """Those whole numbers that the free walk suggests, or the best around where they fall short of its promise."""
        found = sorted(self._nearest(curve), key=self.promise)
        return found if found and self.promise(found[0]) <= curve.least * _AS_GOOD else self.whole(curve)

    def _nearest(self, curve: Curve) -> list[Candidate]:
        starts = (
            self._either(size, count, curve.way(size), min(size, curve.rows(size)))
            for size, count in self._starts(curve)
        )
        resident = self._resident() if _mode(AT_HOME) in map(_mode, curve.ways) else ()
        return [*islice(filter(None, starts), _MOST_STARTS), *resident]

    def few(self) -> list[Candidate]:
        """Blocks of a few sequences, the most promising first: they may be quick enough where nothing free is.

        While the number of gpu batches is free, slots are kept for more than a small block needs.
        """
        shapes = [shape for count in _FEW for shape in ((1, count), (count, 1))]
        ways = ways_of(self.problem, self.request)
        ways = tuple(way for way in ways if way.disk == ways[0].disk)
        found = {
            self._solve(size, self._even(count), way)
            for (size, count), way in product(shapes, ways)
            if size * count <= most_sequences(self.problem)
        }
        return sorted((one for one in found if one), key=self.promise)

    def _resident(self) -> Iterator[Candidate]:
        """The largest gpu batches with which all stays on the compute tier: the curve has no corner there."""
        for size, rows in resident_sizes(self.problem, self.weight_bits, self.kv_bits):
            found = self._exactly(size, self._waves, AT_HOME, rows)
            yield from [found] if found else []

    def promise(self, candidate: Candidate) -> float:
        """Seconds per prompt; rows that no prompt fills count half, as a block that is not full is a bit quicker."""
        prompts, block = self.problem.workload.num_prompts, round(candidate.block_size)
        if not prompts:
            return candidate.seconds_per_sequence
        rows = block * math.ceil(prompts / block)
        return candidate.seconds_per_sequence * (prompts + rows) / 2 / prompts

    @property
    def _ways(self) -> tuple[Way, ...]:
        return ways_of(self.problem, self.request)

    @property
    def _waves(self) -> int:
        return self.problem.pipe.num_waves

    def _even(self, count: int) -> int:
        """As many gpu batches in every wave, at least one."""
        return max(self._waves, count // self._waves * self._waves)

    def _modes(self, size: int, ways: Iterable[Way]) -> dict[Mode, Candidate]:
        """The best candidate of each mode, the number of gpu batches being free; what fails fails for larger ones.

        Activations move, or not, as is better while the CPU attends nothing.
        """
        best: dict[Mode, Candidate] = {}
        only = self._even(1) if 2 * size * self._even(1) > most_sequences(self.problem) else None
        for way in ways:
            beside = best.get((False, way.disk)) if way.attends else None
            if beside and beside.way.moves_activations != way.moves_activations:
                continue
            if self._must_fail(way, size):
                continue
            found, known = self._solve(size, only, way), best.get(_mode(way))
            if not found:
                self._failed[way] = min(size, self._failed.get(way, size))
            elif known is None or found.seconds_per_sequence < known.seconds_per_sequence:
                best[_mode(way)] = found
        return best

    def _narrower(
        self, size: int, widest: Mapping[Mode, Candidate], enough_s: float
    ) -> dict[Mode, Candidate]:
        """The best of each mode that may use less of the disk, as far as those that may use more are quick enough."""
        found, wider = dict[Mode, Candidate](), widest
        for use in DISK_USES[DISK_USES.index(self._ways[0].disk) + 1 :]:
            near = {
                attends
                for (attends, _), one in wider.items()
                if one.seconds_per_sequence <= enough_s or one.way.uses_at_most(use)
            }
            ways = [way for way in self._ways if way.disk == use and way.attends in near]
            wider = self._modes(size, ways)
            found |= wider
        return found

    def _must_fail(self, way: Way, size: int) -> bool:
        """Whether a way that asks for no more has failed for gpu batches of at most this size."""
        return any(failed <= size and known.needs_no_more(way) for known, failed in self._failed.items())

    def _starts(self, curve: Curve) -> list[tuple[int, int]]:
        """Gpu batch sizes and numbers near the free optimum's, or whose blocks divide the prompts.

        Sizes that did not fit while the number of gpu batches was free come last.
        """
        counts = sorted({self._even(count) for count in _COUNTS})
        pairs = {(size, count) for count in counts for size in self._sizes(curve, count)}
        for size, count in curve.near(_NEAR):
            below = self._even(math.floor(count))
            pairs |= {(size, below), (size, below if below >= count else below + self._waves)}
        seconds = {
            pair: curve.guess(*pair) for pair in pairs if curve.seconds(pair[0]) <= _NEAR * curve.least
        }
        fails = {size: self._must_fail(curve.way(size), size) for size, _ in pairs}
        return sorted(seconds, key=lambda pair: (fails[pair[0]], seconds[pair], pair))[:_MOST_TRIES]

    def _sizes(self, curve: Curve, count: int) -> Iterator[int]:
        """Gpu batch sizes for so many gpu batches."""
        prompts = self.problem.workload.num_prompts
        if not prompts:
            yield curve.size(count)
            return
        num_blocks = math.ceil(prompts / curve.best_block)
        for blocks in range(max(1, num_blocks - 1), num_blocks + 2):
            yield math.ceil(math.ceil(prompts / blocks) / count)

    def _climb(self, best: Candidate) -> Candidate:
        """The best around: larger and smaller gpu batches by ever smaller steps, one more of them or one less.

        At last a larger one in smaller chunks, where only these leave room for it.
        """
        step, more = max(1, best.choice.gpu_batch_size // 32), self._waves
        while step:
            size, count = best.choice.gpu_batch_size, round(best.num_gpu_batches)
            changes = [(size + step, count, 1), (size - step, count, 1)]
            if step == 1:
                changes += [(size, count + more, 1), (size, count - more, 1), (size + 1, count, 2)]
            others = (self._at(best, *change) for change in changes)
            better = next((one for one in others if one and self.promise(one) < self.promise(best)), None)
            if better:
                best, step = better, 2 * step
            else:
                step //= 2
        return best

    def _at(self, candidate: Candidate, size: int, count: int, less: int) -> Candidate | None:
        """With another gpu batch size, in chunks of as many rows as far as it has them, or of so much less."""
        most = most_sequences(self.problem)
        if not (1 <= size <= most and count >= 1) or size * (count - 1) >= most:
            return None
        rows = candidate.choice.prefill_rows
        if rows == self.problem.prefill_rows(candidate.choice.gpu_batch_size):
            rows = self.problem.prefill_rows(size)
        way, rows = candidate.way, max(1, min(rows, size) // less)
        return self._exactly(size, count, way, rows)

    def _in_smaller_chunks(self, best: Candidate) -> Iterator[Candidate]:
        """Prefill in smaller chunks, where the memory that it frees is worth it."""
        size, rows, count = best.choice.gpu_batch_size, best.choice.prefill_rows, round(best.num_gpu_batches)
        others = (
            self._solve(size, count, best.way, rows // less) for less in _SMALLER_CHUNKS if rows >= less
        )
        enough = self.promise(best) * (1 - _WORTH_A_CHUNK)
        yield from (other for other in others if other and self.promise(other) < enough)

    def _in_fewer_blocks(self, best: Candidate) -> Iterator[Candidate]:
        """Gpu batches so large that the prompts make a block less, in chunks as large and smaller ones, either way."""
        prompts, count = self.problem.workload.num_prompts, round(best.num_gpu_batches)
        blocks = math.ceil((prompts or 0) / round(best.block_size))
        if prompts and blocks > 1:
            size, rows = math.ceil(prompts / (blocks - 1) / count), best.choice.prefill_rows
            while rows:
                found = (self._exactly(size, count, way, rows) for way in (best.way, _other(best.way)))
                yield from (one for one in found if one)
                rows //= 2

    def _in_larger_chunks(self, best: Candidate) -> Iterator[Candidate]:
        """Prefill in one chunk less, and in one less again, while that is better."""
        size, count = best.choice.gpu_batch_size, round(best.num_gpu_batches)
        chunks = math.ceil(size / best.choice.prefill_rows)
        while chunks > 1:
            chunks -= 1
            found = self._exactly(size, count, best.way, math.ceil(size / chunks))
            if not found or self.promise(found) >= self.promise(best):
                return
            yield found
            best = found

    def _variants(self, best: Candidate) -> Iterator[Candidate]:
        """Activations the other way, prefill in smaller chunks, fewer gpu batches."""
        size, rows, count = best.choice.gpu_batch_size, best.choice.prefill_rows, round(best.num_gpu_batches)
        others = [self._exactly(size, count, _other(best.way), rows)]
        fewer = {self._even(count // less) for less in (*_SMALLER_BLOCKS, count)} - {count}
        others += [self._solve(size, fewer, best.way, rows) for fewer in sorted(fewer, reverse=True)]
        yield from self._in_smaller_chunks(best)
        yield from (other for other in others if other)

    def _singles(self, curve: Curve) -> Iterator[Candidate]:
        """Blocks of one gpu batch, small ones among them: what is left where others turn out to take too long."""
        singles = (self._solve(size, self._even(1), curve.way(size)) for size in curve.sizes)
        yield from (single for single in singles if single)

    def _either(self, size: int, count: int, way: Way, rows: int) -> Candidate | None:
        """With activations as in the way, or where that fails, the other way, or in smaller chunks."""
        found = self._exactly(size, count, way, rows) or self._exactly(size, count, _other(way), rows)
        if found or rows == 1 or self._must_fail(way, size):
            return found
        return self._solve(size, count, way, max(1, rows // 4))

    def _solve(self, size: int, count: int | None, way: Way, rows: int | None = None) -> Candidate | None:
        """The best splits; prefill goes in smaller chunks where memory wants it."""
        rows = rows or self.problem.prefill_rows(size)
        while (found := self._exactly(size, count, way, rows)) is None and rows > 1:
            rows = max(1, rows // 4)
        return found

    def _exactly(self, size: int, count: int | None, way: Way, rows: int) -> Candidate | None:
        """The best splits with chunks of so many rows."""
        key = size, count, rows, way
        if key not in self._known:
            self._known[key] = self._solve_once(size, count, way, rows)
        return self._known[key]

    def _solve_once(self, size: int, count: int | None, way: Way, rows: int) -> Candidate | None:
        """By an LP, unless one that may use more of the disk has an answer that does not.

        Where activations that may move are all at rest, they need no slots, and without these it is no slower.
        """
        for wider in DISK_USES[: DISK_USES.index(way.disk)]:
            key = size, count, rows, replace(way, disk=wider)
            if key in self._known:
                known = self._known[key]
                if known is None or known.way.uses_at_most(way.disk):
                    return known
        choice = Choice(
            gpu_batch_size=size,
            prefill_rows=rows,
            weight_bits=self.weight_bits,
            kv_bits=self.kv_bits,
            num_waves=self._waves,
        )
        solution = self._program(choice, count).solve_only(tier_limits(self.problem), way)
        if not isinstance(solution, Solution):
            return None
        if way.moves_activations and not solution.moves_activations:
            at_rest = self._exactly(size, count, _other(way), rows)
            if at_rest:
                return at_rest
        return Candidate(
            choice=choice,
            way=replace(way, attends=solution.attends, disk=solution.disk_use),
            seconds_per_sequence=solution.seconds_per_sequence,
            num_gpu_batches=count or 1 / solution.shares.inverse_batches,
        )

    def _program(self, choice: Choice, count: int | None) -> Program:
        key = choice.gpu_batch_size, count, choice.prefill_rows
        if key not in self._programs:
            relaxed = Relaxed(
                problem=self.problem,
                choice=choice,
                num_gpu_batches=count,
                max_decode_groups=_GROUPS,
                of_longest=self.request.max_latency_s is not None,
            )
            limits = limits_of(self.problem, self.request, choice, tier_limits(self.problem))
            self._programs[key] = Program(relaxed, limits)
        return self._programs[key]


def _is_idle(mode: Mode, curves: Mapping[Mode, Curve]) -> bool:
    """Whether the CPU attends rows and nothing is won by it."""
    attends, disk = mode
    without = curves.get((False, disk))
    return attends and without is not None and curves[mode].least > without.least * (1 - _WORTH_ATTENDING)


def _seconds(candidate: Candidate) -> float:
    return candidate.seconds_per_sequence


def _other(way: Way) -> Way:
    """With activations at rest instead of moving, or the other way round."""
    return replace(way, moves_activations=not way.moves_activations)


def _mode(way: Way) -> Mode:
    return way.attends, way.disk
