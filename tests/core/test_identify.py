"""Which truncation is it? Each kind is found, at its k; what is none stays none; what cannot be known is not said."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import gradaudit
from gradaudit.backends.numpy import NumpyModel
from gradaudit.errors import ModelContractError, OptionError
from gradaudit.lens.hypotheses import candidates, distinct, first_uses, of_last_loss, reaches, truncation
from gradaudit.lens.step_losses import fitting, owed
from gradaudit.recurrent import chunks, none, tail, tbptt, window
from tests.truncated import network

TRUNCATIONS = [tail(3), window(1), window(5), chunks(6), chunks(7), tbptt(3, 7), tbptt(5, 5), tbptt(4, 12)]


@pytest.mark.parametrize("n_steps", [5, 12, 13])
def test_hypotheses_are_the_truncations_by_definition(n_steps):
    steps = np.arange(1, n_steps + 1)
    every = [kind(k) for kind in (tail, window, chunks) for k in range(1, n_steps)]
    every += [tbptt(k1, k) for k in range(1, n_steps) for k1 in range(1, k + 1)]
    wanted = {tuple(t.reach(n_steps).tolist()) for t in every}
    for use in (1, n_steps // 2):
        rows = candidates(use, [0, *range(use, n_steps)], n_steps)
        found = [truncation(row) for row in rows]
        assert len(set(found)) == len(found)
        for reach, first, t in zip(reaches(rows, steps, n_steps), first_uses(rows, steps, n_steps), found, strict=True):
            assert reach.tolist() == t.reach(n_steps).tolist()
            kept = t.pairs(n_steps)
            assert first.tolist() == [
                int(np.argmax(k)) + 1 if k.any() else s + 1 for s, k in zip(steps, kept, strict=True)
            ]
        assert {tuple(reach) for reach in reaches(rows, steps, n_steps).tolist()} == {
            reach for reach in wanted if reach[use - 1] < n_steps
        }


def test_with_one_loss_at_the_end_all_that_cover_as_much_are_one():
    found = {truncation(row) for row in of_last_loss(4, 12)}
    assert found == {tail(4), window(4), chunks(4), chunks(8), tbptt(2, 4), tbptt(3, 4)}
    assert all((t.reach(12) == 12).sum() == 4 for t in found)
    assert distinct(np.array([[1, 0, 1], [2, 0, 1]]), 12) == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda losses: 2 * losses, "the sum of the step losses by .*, 2 times as much"),
        (lambda losses: losses / len(losses), "where that is a mean, its share of the mean"),
        (lambda losses: losses * (np.arange(len(losses)) > 3), "times as much"),
        (lambda losses: losses[:-1], r"step losses of 1 x 24 inputs have shape \(1, 23\)"),
        (lambda losses: losses[:, None], r"have shape \(1, 24, 1\)"),
        (lambda losses: losses.sum(), r"have shape \(1,\)"),
    ],
)
@pytest.mark.parametrize("truth", [none(), chunks(6)], ids=str)
def test_step_losses_that_are_not_those_of_the_loss_are_refused(change, text, truth):
    model, step_losses = network(truth)
    with pytest.raises(ModelContractError, match=f"(?s){text}"):
        gradaudit.identify_truncation(model, step_losses=lambda p: change(step_losses(p)))


@pytest.mark.parametrize("penalty", [0.0, 3.0, 1e6])
def test_a_penalty_of_the_weights_may_be_missing_from_the_step_losses(penalty):
    model, step_losses = network(window(5))
    with_penalty = NumpyModel(
        lambda p: model.loss(p) + penalty, model.parameters(), gradient=lambda p: model.value_and_grad(p)[1]
    )
    found = gradaudit.identify_truncation(with_penalty, step_losses=step_losses)
    assert found.truncation == window(5)


@pytest.mark.parametrize("truth", TRUNCATIONS, ids=str)
def test_the_truncation_is_found_from_step_losses(truth):
    model, step_losses = network(truth)
    found = gradaudit.identify_truncation(model, step_losses=step_losses)
    assert (found.status, found.truncation, found.losses) == ("truncated", truth, "all")
    assert (found.evaluations, found.gradients) == (6 * 24 + 12, 2)
    assert str(truth) in str(found)


@pytest.mark.parametrize("truth", TRUNCATIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_truncation_is_found_from_loss_and_gradient_alone(truth, dtype):
    model, _ = network(truth, dtype=dtype)
    found = gradaudit.identify_truncation(model)
    assert (found.status, found.truncation) == ("truncated", truth)


def test_what_it_costs():
    model, _ = network(window(5))
    found = gradaudit.identify_truncation(model)
    assert (found.evaluations, found.gradients) == (68, 9)


@pytest.mark.parametrize("truth", TRUNCATIONS, ids=str)
def test_with_a_loss_at_the_last_step_the_class_is_found(truth):
    model, step_losses = network(truth, outputs="last")
    by_losses = gradaudit.identify_truncation(model, step_losses=step_losses)
    by_influence = gradaudit.identify_truncation(model, losses="last")
    for found in (by_losses, by_influence):
        assert found.status == "truncated"
        assert truth in found.hypotheses or truth == tbptt(1, truth.k)
        assert found.covered == (truth.reach(24) == 24).sum()
        assert found.losses == "last"
        assert f"the last {found.covered} of 24 steps" in str(found)
    assert set(by_losses.hypotheses) == set(by_influence.hypotheses)
    unsaid = gradaudit.identify_truncation(model)
    assert unsaid.truncation == tail(by_losses.covered)
    assert "if only the last step has a loss" in str(unsaid)


@pytest.mark.parametrize("truth", [none(), *TRUNCATIONS], ids=str)
@pytest.mark.parametrize("every", [3, 7])
def test_with_losses_at_some_steps_all_that_look_the_same_are_found(truth, every):
    model, step_losses = network(truth, every=every)
    at = sorted({*range(every, 25, every), 24})
    by_losses = gradaudit.identify_truncation(model, step_losses=step_losses)
    by_influence = gradaudit.identify_truncation(model, losses=at)
    for found in (by_losses, by_influence):
        assert found.losses == "some"
        assert found.status == ("truncated" if truth.cuts(24) else "not truncated")
        assert not truth.cuts(24) or truth in found.hypotheses or truth == tbptt(truth.k1, truth.k1)
    assert set(by_losses.hypotheses) == set(by_influence.hypotheses)


@pytest.mark.parametrize(
    ("truth", "told"), [(window(5), "(if every step has a loss)"), (chunks(8), "Every step is taken")]
)
def test_losses_that_are_not_told_are_taken_to_be_at_every_step(truth, told):
    assert told in str(gradaudit.identify_truncation(network(truth, every=3)[0]))


@pytest.mark.parametrize(("losses", "told"), [([], "no step"), ([0, 3], "0 to 3 of 24"), ([25], "25 to 25 of 24")])
def test_losses_at_no_step_are_refused(losses, told):
    with pytest.raises(OptionError, match=told):
        gradaudit.identify_truncation(network()[0], losses=losses)


@pytest.mark.parametrize("recurrent", [0.9, 1e-3], ids=["remembers", "vanishes"])
@pytest.mark.parametrize("outputs", ["all", "last"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_is_not_truncated_is_not(recurrent, outputs, dtype):
    model, step_losses = network(none(), recurrent=recurrent, outputs=outputs, dtype=dtype)
    for found in (
        gradaudit.identify_truncation(model, step_losses=step_losses),
        gradaudit.identify_truncation(model, losses=outputs),
    ):
        assert (found.status, found.hypotheses, found.covered) == ("not truncated", (), 24)


def test_a_truncation_that_takes_away_a_millionth_is_found():
    model, step_losses = network(window(9), recurrent=0.2)
    full, _ = network(none(), recurrent=0.2)
    one, other = (m.value_and_grad(m.parameters())[1]["x"] for m in (model, full))
    assert 1e-8 < np.linalg.norm(one - other) / np.linalg.norm(other) < 1e-6
    for found in (
        gradaudit.identify_truncation(model, step_losses=step_losses),
        gradaudit.identify_truncation(model),
    ):
        assert found.truncation == window(9)


def test_next_to_a_cut_the_gradient_may_be_too_small_to_be_seen_missing(monkeypatch):
    """The search stops a step further back than the cut, which bits of the gradient show."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    script = importlib.import_module("identify")
    net, x = script.random_net(np.random.default_rng([6, 188]), "tail")
    found = script.by_rule("I", net, x, 188)
    assert (found.status, found.covered, net.truncation) == ("truncated", 56, tail(56))


@pytest.mark.parametrize(
    ("seed", "i", "kind", "expected"),
    [
        (8, 466, "none", ("not truncated", ())),  # sixteen steps together are off by more than their errors
        (11, 87, "tbptt", ("truncated", (tbptt(54, 83),))),  # what is missing is as large as these errors
    ],
)
def test_blocks_that_bend_are_asked_by_shorter_displacements(monkeypatch, seed, i, kind, expected):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    script = importlib.import_module("identify")
    net, x = script.random_net(np.random.default_rng([seed, i]), kind)
    found = script.by_rule("I", net, x, i)
    assert (found.status, found.hypotheses) == expected


def test_a_truncation_without_effect_is_none():
    model, step_losses = network(window(9), recurrent=1e-3)
    found = gradaudit.identify_truncation(model, step_losses=step_losses)
    assert found.status == "not truncated"
    assert found.unnoticed is not None
    assert found.unnoticed <= 4
    assert f"A window of {found.unnoticed} steps, or more, would look the same" in str(found)


@pytest.mark.parametrize(
    "change",
    [
        lambda g: 1.01 * g,
        lambda g: g * (np.arange(24) != 4)[:, None, None],
        lambda g: g * (np.arange(24) < 20)[:, None, None],
    ],
    ids=["a factor", "a hole", "the end is missing"],
)
def test_another_error_is_no_truncation(change):
    model, step_losses = network(none(), change=change)
    for found in (
        gradaudit.identify_truncation(model, step_losses=step_losses),
        gradaudit.identify_truncation(model),
    ):
        assert found.status in ("none of these", "cannot tell")
        assert found.hypotheses == ()
        assert found.why in str(found)


def test_steps_that_do_not_touch_one_another_are_no_truncation():
    """Rows of a batch look like window(1), but the loss does not couple them."""
    c, x = np.random.default_rng(0).standard_normal((2, 20, 3))

    def gradient(p):
        g = c * np.cos(p["x"])
        g[4] *= 2
        return {"x": g}

    model = gradaudit.api.registry.model_of(lambda p: (c * np.sin(p["x"])).sum(), {"x": x}, gradient=gradient)
    assert gradaudit.identify_truncation(model).status == "cannot tell"


def test_a_gradient_that_does_not_repeat_itself_tells_nothing():
    rng = np.random.default_rng(0)
    model, _ = network(window(5), change=lambda g: g * (1 + 1e-15 * rng.standard_normal(g.shape)))
    found = gradaudit.identify_truncation(model)
    assert found.status == "cannot tell"
    assert "do not give the same gradient" in str(found)


def test_it_keeps_to_its_budget():
    model, step_losses = network(window(5))
    for how in ({}, {"step_losses": step_losses}):
        found = gradaudit.identify_truncation(model, max_evaluations=20, **how)
        assert found.status == "cannot tell"
        assert "max_evaluations = 20" in str(found)
        assert found.evaluations <= 20


def test_copies_at_once_and_another_axis_are_the_same():
    model, step_losses = network(chunks(7))
    base = model.parameters()["x"]
    turned = gradaudit.api.registry.model_of(
        lambda p: model.loss({"x": p["x"].swapaxes(0, 1)}),
        {"x": base.swapaxes(0, 1)},
        gradient=lambda p: {"x": model.value_and_grad({"x": p["x"].swapaxes(0, 1)})[1]["x"].swapaxes(0, 1)},
    )

    def together(p):
        return np.stack([step_losses({"x": x.swapaxes(0, 1)}) for x in p["x"]])

    assert gradaudit.identify_truncation(turned, axis=1, step_losses=together, batched=True).truncation == chunks(7)
    assert gradaudit.identify_truncation(turned, axis=1).truncation == chunks(7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inputs": "z"}, "no 'z' among x"),
        ({"axis": 1}, "no axis 1 of at least 3 steps"),
        ({"axis": 5}, "no axis 5"),
        ({"losses": "some"}, "unknown losses 'some'"),
    ],
)
def test_bad_requests_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        gradaudit.identify_truncation(network()[0], **options)


class Drawing:
    """A model that draws from the global generators, and may raise."""

    def __init__(self, model, fails=None):
        self.model, self.fails, self.calls = model, fails, 0

    def value_and_grad(self, p):
        np.random.random()
        self.calls += 1
        if self.calls == self.fails:
            raise KeyboardInterrupt
        return self.model.value_and_grad(p)

    def __getattr__(self, name):
        return getattr(self.model, name)


@pytest.mark.parametrize("fails", [None, 2])
def test_the_random_generators_are_as_before(fails):
    x = np.random.default_rng(0).standard_normal((8, 2))
    model = Drawing(
        NumpyModel(lambda p: np.sin(p["x"]).sum(), {"x": x}, gradient=lambda p: {"x": np.cos(p["x"])}), fails
    )
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    with nullcontext() if fails is None else pytest.raises(KeyboardInterrupt):
        gradaudit.identify_truncation(model)
    assert model.calls > 1
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize(("error", "allowed"), [(1.6e-2, True), (1e-4, False), (1e-10, False)])
def test_differences_across_a_bend_condemn_no_hypothesis(error, allowed):
    """What is left over is seven errors: where they are a good part of the derivative, they are not known that well."""
    sums = np.array([[0.0, 1.0, 2.0]])
    fits = fitting(np.array([2.0 + 7 * error]), sums, np.full((1, 3), error), relative=1e-12)
    assert fits.allowed[0].tolist() == [False, False, allowed]


def test_where_a_loss_bends_the_inputs_are_moved_less():
    """Rule R's differences of a wave so short that six nodes see no straight line; those of a shorter move do."""
    rng, asked = np.random.default_rng(0), []
    x = rng.uniform(-1, 1, (40, 1))

    def losses(inputs):
        asked.append(len(inputs))
        return np.sin(150 * inputs[:, :, 0])

    found, errors = owed(losses, x, np.ones_like(x), 2.0**-52)
    truth = 150 * np.cos(150 * x[:, 0])
    off = np.abs(found[:, -1] - truth)
    assert (off <= 6 * errors[:, -1]).all()
    assert off.max() < 1e-4 * np.abs(truth).max()
    assert 8 + 6 * 40 < sum(asked) <= 8 + 3 * 6 * 40
    # of a tame one nothing is asked twice
    asked.clear()
    owed(lambda inputs: losses(inputs / 150), x, np.ones_like(x), 2.0**-52)
    assert sum(asked) == 8 + 6 * 40
