"""Wrong entries, rows, columns and blocks are found in few directions, and nothing is found that is not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gradaudit.direction import Direction
from gradaudit.measure.localise import Gap, localise
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.numeric.estimate import Known, estimate, follow_up
from gradaudit.numeric.sampler import Sampler
from tests.core.models import of

EXACT, NOISY = 6e-9, 1e-4


class Simulated:
    """Gaps of a gradient whose errors are known, with noise all over a bound of ``r`` relative to ||g * v||."""

    def __init__(self, errors, *, r=EXACT, floor=False, seed=0):
        self.errors, self.r, self.floor = np.asarray(errors, float), r, floor
        self.rng = np.random.default_rng([seed, 1])
        self.g = self.rng.standard_normal(self.errors.shape)
        self.asked = 0
        self.longest = 0

    def gap(self, direction):
        v = direction.block("w", self.errors.shape)
        assert np.any(v != 0)
        bound = self.r * np.linalg.norm(self.g * (1.0 if self.floor else v))
        return Gap(value=float((self.errors * v).sum() + bound * self.rng.uniform(-1, 1)), bound=float(bound))

    def __call__(self, directions):
        self.asked += len(directions)
        self.longest = max(self.longest, len(directions))
        return [self.gap(direction) for direction in directions]


def sparse(shape, n, seed=0):
    """n errors of the size of 1 at random places."""
    rng = np.random.default_rng([seed, 2])
    errors = np.zeros(shape)
    errors.flat[rng.choice(errors.size, n, replace=False)] = rng.choice([-1, 1], n) * rng.uniform(0.5, 1.5, n)
    return errors


def part(shape, *index, seed=0):
    """Errors in one part of a tensor."""
    errors = np.zeros(shape)
    errors[index] = np.random.default_rng([seed, 3]).standard_normal(errors[index].shape)
    return errors


def find(errors, *, r=EXACT, most=1000, seed=0, scale=0.7, floor=False):
    oracle = Simulated(errors, r=r, seed=seed, floor=floor)
    found = localise(oracle, "w", np.shape(errors), scale, seed=seed, most=most)
    assert found.directions == oracle.asked <= most
    assert len(found.entries) == len(found.errors) == len(set(found.entries))
    assert all(errors[index] != 0 for index in found.entries)
    assert list(found.errors) == sorted(found.errors, key=abs, reverse=True)
    return found


def places(errors):
    return set(map(tuple, np.argwhere(errors).tolist()))


SHAPES = [(40,), (2000,), (1, 300), (300, 1), (20, 30), (100, 100), (8, 4, 3, 3), (6, 5, 40), (2, 2, 2, 2, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_one_entry_takes_five_directions(shape, seed):
    errors = sparse(shape, 1, seed)
    found = find(errors, seed=seed, most=5)
    assert (found.kind, found.complete) == ("entries", True)
    assert set(found.entries) == places(errors)
    assert found.where == f"entry {found.entries[0]}"
    assert found.errors[0] == pytest.approx(errors[found.entries[0]], rel=1e-6)


def test_one_entry_of_a_million():
    errors = sparse((1000, 1000), 1)
    found = find(errors, most=5)
    assert set(found.entries) == places(errors)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (1, 1), (3, 1), (2, 2)])
def test_tiny_tensors(shape):
    errors = part(shape, ...)
    found = find(errors, most=errors.size + 5)
    assert (set(found.entries), found.complete) == (places(errors), True)
    assert found.kind == ("whole tensor" if errors.size > 1 else "entries")


@pytest.mark.parametrize(("shape", "n", "most"), [((10, 10), 10, 75), ((100, 100), 10, 80), ((100, 100), 30, 160)])
@pytest.mark.parametrize("seed", range(5))
def test_some_entries(shape, n, most, seed):
    errors = sparse(shape, n, seed)
    found = find(errors, seed=seed, most=most)
    assert (found.kind, found.complete) == ("entries", True)
    assert set(found.entries) == places(errors)
    np.testing.assert_allclose(found.errors, [errors[index] for index in found.entries], rtol=1e-6)


def test_a_hundred_entries():
    errors = sparse((100, 100), 100)
    found = find(errors, most=450)
    assert (found.kind, found.complete, set(found.entries)) == ("entries", True, places(errors))


@pytest.mark.parametrize("seed", range(5))
def test_some_of_a_hundred_entries_with_too_few_directions(seed):
    found = find(sparse((100, 100), 100, seed), most=300, seed=seed)
    assert (found.kind, found.complete) == ("entries", False)
    assert len(found.entries) >= 5


@pytest.mark.parametrize("seed", range(3))
def test_ten_faint_entries_of_a_million_are_not_called_the_whole_tensor(seed):
    found = find(sparse((1000, 1000), 10, seed), r=NOISY, floor=True, most=600, seed=seed)
    assert found.kind in ("entries", "not found")


def test_entries_of_very_different_sizes():
    errors = sparse((50, 50), 4)
    errors[errors != 0] *= [1e-3, 1.0, 1e3, 1e5]
    found = find(errors, most=100)
    assert (found.complete, set(found.entries)) == (True, places(errors))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(10, 10), (30, 50), (100, 100), (6, 5, 40)])
def test_a_row(shape, seed):
    row = seed % shape[0]
    found = find(part(shape, row), seed=seed, most=20)
    assert (found.kind, found.complete) == ("rows", True)
    assert found.where.startswith(f"row {row}")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(10, 10), (30, 50), (100, 100)])
def test_a_column(shape, seed):
    found = find(part(shape, slice(None), 2 * seed), seed=seed, most=20)
    assert (found.kind, found.complete) == ("columns", True)
    assert found.where.startswith(f"column {2 * seed}")


def test_a_column_of_a_tensor_of_three_dimensions():
    found = find(part((30, 4, 8), slice(None), 2, 3), most=20)
    assert (found.kind, found.complete) == ("columns", True)
    assert found.where == "column 19 (12 of 12 sampled entries are wrong), of a 30 x 32 matrix"


def test_some_rows():
    errors = part((100, 60), [3, 17, 18, 50, 77])
    found = find(errors, most=160)
    assert (found.kind, found.complete) == ("rows", True)
    assert found.where.startswith("rows 3, 17..18, 50, 77")


def test_some_columns():
    errors = part((60, 100), slice(None), [3, 17, 18, 50, 77])
    found = find(errors, most=160)
    assert (found.kind, found.complete) == ("columns", True)
    assert found.where.startswith("columns 3, 17..18, 50, 77")


@pytest.mark.parametrize(("parts", "k"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2), (4, 3)])
def test_gates(parts, k):
    h = 48 // parts
    gate = slice(k * h, (k + 1) * h)
    across = find(part((20, 48), slice(None), gate), most=35)
    along = find(part((48, 20), gate), most=35)
    assert (across.kind, along.kind, across.complete, along.complete) == ("columns", "rows", True, True)
    text = f"{k * h}..{(k + 1) * h - 1} ({k + 1} of {parts} equal parts)"
    assert across.where.startswith(f"columns {text}")
    assert along.where.startswith(f"rows {text}")


def test_two_gates_that_are_no_neighbours():
    found = find(part((20, 48), slice(None), np.r_[0:12, 24:36]), most=35)
    assert (found.kind, found.complete) == ("columns", True)
    assert found.where.startswith("columns 0..11, 24..35")


def test_a_gate_of_a_bias():
    found = find(part((128,), slice(32, 64)), most=35)
    assert (found.kind, found.complete) == ("block", True)
    assert found.where.startswith("entries 32..63 (2 of 4 equal parts)")


def test_a_block():
    found = find(part((48, 48), slice(12, 24), slice(16, 32)), most=40)
    assert (found.kind, found.complete) == ("block", True)
    assert found.where.startswith("rows 12..23 (2 of 4 equal parts), columns 16..31 (2 of 3 equal parts)")


def test_a_small_block_is_read_and_seen_as_one():
    errors = part((20, 20), slice(3, 5), slice(7, 10))
    found = find(errors, most=60)
    assert (found.kind, found.where) == ("block", "rows 3..4, columns 7..9")
    assert set(found.entries) == places(errors)


@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_everything(shape):
    found = find(part(shape, ...), most=23)
    assert (found.kind, found.complete) == ("whole tensor", True)
    assert found.where.startswith("whole tensor")


def test_too_many_entries_for_a_list():
    found = find(sparse((100, 100), 3000), most=200)
    assert (found.kind, found.complete) == ("whole tensor", True)
    assert ", spread" in found.where


def test_a_row_and_an_entry():
    errors = part((100, 100), 40)
    errors[7, 8] = 1.0
    found = find(errors, most=200)
    assert (found.kind, found.complete) == ("rows", True)
    assert found.where.startswith("row 40")
    assert found.where.endswith("entry (7, 8)")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_clean_tensor(shape):
    found = find(np.zeros(shape), most=3)
    assert (found.kind, found.where, found.entries, found.complete) == ("not found", "nowhere", (), True)


@pytest.mark.parametrize("floor", [False, True])
@pytest.mark.parametrize("n", [0, 1, 10, 100])
@pytest.mark.parametrize("seed", range(3))
def test_noise_makes_no_false_entries(n, seed, floor):
    errors = sparse((100, 100), n, seed)
    found = find(errors, r=NOISY, most=1500, seed=seed, floor=floor)  # find() looks for false ones
    assert set(found.entries) == places(errors)


@pytest.mark.parametrize("seed", range(20))
def test_noise_as_large_as_the_errors_finds_nothing_false(seed):
    find(sparse((30, 30), 5, seed), r=0.1, most=300, seed=seed, floor=True)


@pytest.mark.parametrize("seed", range(3))
def test_faint_errors_everywhere_are_not_hunted_one_by_one(seed):
    found = find(0.1 * part((100, 100), ..., seed=seed), r=6e-4, floor=True, most=200, seed=seed)
    assert found.kind == "whole tensor"


@pytest.mark.parametrize("most", [0, 1, 2, 3, 4, 10, 30, 60])
@pytest.mark.parametrize("errors", [sparse((100, 100), 20), part((100, 100), 3), part((40, 40), ...)])
def test_the_most_is_kept_to(errors, most):
    found = find(errors, most=most)
    assert not found.complete or found.kind in ("rows", "whole tensor")
    assert found.kind != "not found" or found.where == "not found in so few directions"


def test_scales_by_entry():
    errors = sparse((30, 40), 3)
    scale = 10.0 ** np.random.default_rng(1).uniform(-2, 2, errors.shape)
    found = find(errors, scale=scale, most=60)
    assert (found.complete, set(found.entries)) == (True, places(errors))


def test_a_seed_is_an_answer():
    errors = sparse((50, 50), 8)
    assert find(errors, seed=4) == find(errors, seed=4)


def test_few_scales_are_held_at_a_time():
    oracle = Simulated(np.zeros((3000, 1000)))
    localise(oracle, "w", (3000, 1000), 1.0, seed=0, most=3)
    assert oracle.longest <= 2


def test_an_oracle_without_answers():
    found = localise(lambda ds: [Gap(value=np.nan, bound=np.inf) for _ in ds], "w", (9, 9), 1.0, seed=0, most=50)
    assert (found.kind, found.complete, found.entries) == ("not found", False, ())


def test_an_oracle_that_stops():
    oracle = Simulated(sparse((100, 100), 20))

    def ends(directions):
        if oracle.asked > 40:
            raise Stop
        return oracle(directions)

    found = localise(ends, "w", (100, 100), 1.0, seed=0, most=1000)
    assert not found.complete


def test_gaps():
    gap = Gap(value=1.0, bound=0.1).without(Gap(value=2.0, bound=0.2), -0.5)
    assert (gap.value, gap.bound) == pytest.approx((2.0, 0.2))
    assert Gap(value=-1.0, bound=0.4).wrong
    assert not Gap(value=-1.0, bound=0.6).wrong
    assert not Gap(value=0.0, bound=0.0).wrong
    assert not replace(gap, value=np.nan).wrong


def numeric(errors):
    """Gaps through real losses: a float64 model whose gradient is off by ``errors``."""
    rng = np.random.default_rng(5)
    c, p = rng.standard_normal((2, *errors.shape))
    model = of(lambda q: (c * np.sin(q["w"])).sum(), lambda q: {"w": c * np.cos(q["w"]) + errors}, w=p)
    _, gradients = model.value_and_grad(model.parameters())
    sampler = Sampler(model, Budget(10**6), gradients={"w": None}, batch_bytes=2**20, dtype="float64")
    first = estimate(sampler, [Direction(label="w", scales={"w": 1.0}, seed=9)], "test")[0]
    known = Known(sigma=first.sigma, base=first.base, step=first.step)

    def oracle(directions):
        found = follow_up(sampler, directions, known, "test")
        own = [2.3e-16 * (16 * d.reach(gradients) + 64 * abs(d.dot(gradients))) for d in directions]
        return [
            Gap(value=d.dot(gradients) - e.value, bound=e.bound + b)
            for d, e, b in zip(directions, found, own, strict=True)
        ]

    return localise(oracle, "w", errors.shape, 1.0, seed=0, most=200)


@pytest.mark.parametrize(("n", "most"), [(0, 3), (1, 5), (5, 50)])
def test_through_real_losses(n, most):
    errors = sparse((40, 25), n)
    found = numeric(errors)
    assert (found.complete, set(found.entries)) == (True, places(errors))
    assert found.directions <= most


def test_a_row_through_real_losses():
    found = numeric(part((40, 25), 11))
    assert (found.kind, found.complete, found.directions <= 20) == ("rows", True, True)
    assert found.where.startswith("row 11")
