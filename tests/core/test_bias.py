"""Bias curves: of models whose pairs of steps are known, and of the NumPy networks."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext

import numpy as np
import pytest

import gradaudit
from gradaudit.arrays import global_norm
from gradaudit.backends import registry
from gradaudit.errors import ModelContractError, OptionError
from gradaudit.lens.decay import lengths, rate
from gradaudit.recurrent import RecurrentSpec, SequenceData, Truncation, none, random_sequences, tbptt, window


class Pairs:
    """A model whose gradient is a sum over given contributions (T, T, 3) of pairs (loss step, use step)."""

    def __init__(self, contributions, truncation=None, asked=None):
        self.contributions, self.truncation = contributions, truncation or none()
        self.asked = [] if asked is None else asked

    def parameters(self):
        return {"w": np.zeros(2), "b": np.zeros(1)}

    def loss(self, parameters):
        return np.float64(1)

    def gradient(self, truncation):
        kept = self.contributions[truncation.pairs(len(self.contributions))].sum(axis=0)
        return {"w": kept[:2], "b": kept[2:]}

    def value_and_grad(self, parameters):
        self.asked.append(self.truncation)
        return np.float64(1), self.gradient(self.truncation)

    def with_truncation(self, truncation):
        return Pairs(self.contributions, truncation, self.asked)

    def sizes(self):
        return {"steps": len(self.contributions)}

    def bias(self, truncation):
        full, kept = self.gradient(none()), self.gradient(truncation)
        return global_norm({n: full[n] - kept[n] for n in full}) / global_norm(full)


def geometric(beta, n_steps=100, direction=(1.0, -2.0, 0.5)):
    """Every loss receives beta^j from j steps before; the last losses have everything."""
    ages = np.subtract.outer(np.arange(n_steps), np.arange(n_steps))
    return Pairs(np.where(ages >= 0, float(beta) ** np.abs(ages), 0)[:, :, None] * np.array(direction))


def smallest(model, kind, delta):
    below = [model.bias(Truncation(kind, k)) < delta for k in range(1, len(model.contributions) + 1)]
    return max((k + 1 for k, fine in enumerate(below, 1) if not fine), default=1)


@pytest.mark.parametrize("delta", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("beta", [0.5, 0.9, 0.97])
def test_the_answer_is_the_smallest_k_and_every_point_is_the_bias(beta, delta):
    model = geometric(beta)
    curve = gradaudit.bias_curve(model, delta=delta)
    assert [one.kind for one in curve.curves] == ["window", "chunks", "tail"]
    assert curve.answered
    for one in curve.curves:
        assert one.k == smallest(model, one.kind, delta) == one.smallest(delta)
        for point in one.points:
            assert point.bias == pytest.approx(model.bias(Truncation(one.kind, point.k)), abs=1e-12)
            assert point.parameters == pytest.approx({"w": point.bias, "b": point.bias}, abs=1e-12)
    # of pairs j apart there are T - j: their sum falls a little faster than each of them
    assert 0.9 * beta < curve["window"].beta <= beta


def test_beta_is_exact_where_the_contributions_are_geometric():
    windows = {k: (np.array([1 - 0.83**k]),) for some in lengths(100) for k in some}
    assert rate(windows, 1e-12) == pytest.approx(0.83, rel=1e-10)
    assert rate(windows, 2.0) is None


def test_beta_of_a_linear_network_is_its_eigenvalue():
    spec = RecurrentSpec(n_features=1, n_classes=2, activation="identity", outputs="last")
    weights = {"W": np.array([[0.5, -0.3]]), "R": np.diag([0.8, 0.3]), "b": np.array([0.1, 0.0])}
    data = SequenceData(features=np.ones((1, 100, 1)), labels=np.zeros((1, 100), int))
    model = registry.get("numpy").recurrent_model(spec, weights, data, none())
    curve = gradaudit.bias_curve(model, delta=1e-3, kinds=["window"])
    assert curve["window"].beta == pytest.approx(0.8, rel=1e-3)


def test_what_is_left_of_rounding_is_no_beta():
    curve = gradaudit.bias_curve(geometric(0.01), delta=1e-12, kinds=["window"])
    assert curve["window"].beta == pytest.approx(0.01, rel=0.02)
    assert gradaudit.bias_curve(geometric(0.0), kinds=["window"])["window"].beta is None


def test_the_lengths():
    assert list(lengths(3)) == [[1, 2, 3]]
    assert list(lengths(8)) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert list(lengths(21)) == [[1, 2, 3, 4], [5, 6, 7, 8], [10, 12, 14, 16], [20, 21]]


def test_every_gradient_is_counted_and_none_is_computed_twice():
    model = geometric(0.9)
    curve = gradaudit.bias_curve(model)
    points = [(one.kind, point.k) for one in curve.curves for point in one.points]
    asked = {("none", None)} | {(kind, k) for kind, k in points if k < 100}
    assert {(t.kind, t.k) for t in model.asked} == asked
    assert curve.gradients == len(model.asked) == len(asked)
    work = sum(point.work for one in curve.curves for point in one.points if point.k < 100)
    assert curve.work == pytest.approx(1 + work)
    seen = []
    gradaudit.bias_curve(geometric(0.9), progress=lambda what, n: seen.append((what, n)))
    assert seen == [(str(t), i + 1) for i, t in enumerate(model.asked)]


@pytest.mark.parametrize("horizon", [7, 17, 33, 49, 64, 90])
def test_the_cost_of_windows_is_bounded(horizon):
    # nothing to bisect: the bias is never below delta
    curve = gradaudit.bias_curve(geometric(0.99), delta=1e-9, kinds="window", horizon=horizon)
    assert curve.work <= 1 + 7.5 * horizon
    assert curve["window"].horizon == horizon


def test_the_cost_of_a_length():
    points = {one.kind: one.points for one in gradaudit.bias_curve(geometric(0.9)).curves}
    by = {kind: {point.k: point for point in some} for kind, some in points.items()}
    # windows: the first 8 steps are one run, then 92 runs of 8 steps
    assert (by["window"][8].work, by["window"][8].held) == (93 * 8 / 100, 8)
    assert (by["chunks"][8].work, by["chunks"][8].held) == (1, 8)
    assert (by["tail"][8].work, by["tail"][8].held) == (8 / 100, 8)
    assert (by["tail"][100].work, by["tail"][100].held, by["tail"][100].bias) == (1, 100, 0)


def test_a_horizon_that_is_too_short_is_said():
    model = geometric(0.9)
    curve = gradaudit.bias_curve(model, delta=0.001, horizon=30, kinds=["window"])
    one = curve["window"]
    assert (one.k, one.horizon, curve.answered) == (None, 30, False)
    assert one.extrapolated == pytest.approx(smallest(model, "window", 0.001), rel=0.1)
    assert one.points[-1].bias > 0.001
    text = str(curve).replace("\n", " ")
    assert "window: the horizon of 30 steps is too short; the bias is" in text
    assert f"it takes about window({one.extrapolated})" in text


def test_a_horizon_that_is_too_short_to_see_any_decay():
    growing = geometric(1.05)
    curve = gradaudit.bias_curve(growing, horizon=32, kinds=["window"])
    assert curve["window"].beta > 1
    assert curve["window"].extrapolated is None
    assert "That says nothing of longer ones" in str(curve).replace("\n", " ")
    # up to T there is always an answer
    assert gradaudit.bias_curve(growing, horizon=100, kinds=["window"])["window"].k == smallest(growing, "window", 0.1)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.95])
def test_without_the_full_gradient_a_bound_is_given(beta):
    model = geometric(beta)
    curve = gradaudit.bias_curve(model, delta=0.1, full=False)
    assert none() not in model.asked
    assert all(t.k <= curve["window"].horizon or t.kind != "window" for t in model.asked)
    for one in curve.curves:
        for point in one.points:
            assert point.bias >= model.bias(Truncation(one.kind, point.k)) - 1e-12
    assert curve["window"].k == pytest.approx(smallest(model, "window", 0.1), abs=1)
    assert "a bound" in str(curve)


def test_without_the_full_gradient_too_short_a_horizon_bounds_nothing():
    curve = gradaudit.bias_curve(geometric(1.05), full=False, horizon=16, kinds=["tail"])
    assert [one.kind for one in curve.curves] == ["tail"]
    assert not curve.answered
    assert all(point.bias == np.inf for point in curve["tail"].points)


def test_without_the_full_gradient_all_steps_are_exact():
    model = geometric(0.99)
    curve = gradaudit.bias_curve(model, delta=1e-6, full=False, horizon=1000, kinds=["window"])
    assert curve["window"].horizon == 100
    for point in curve["window"].points:
        assert point.bias == pytest.approx(model.bias(window(point.k)), abs=1e-12)


def test_a_bias_that_dips_and_rises_again_is_no_answer():
    ages = np.subtract.outer(np.arange(40), np.arange(40))
    # after 6 steps everything seems to be there; 10 steps apart much is added, and taken back 30 steps apart
    amounts = (ages == 0) * 1.0 + (ages == 9) * 2.0 - (ages == 29) * 8.0
    model = Pairs(amounts[:, :, None] * np.ones(3))
    curve = gradaudit.bias_curve(model, delta=0.4, kinds=["window"])
    biases = {point.k: point.bias for point in curve["window"].points}
    assert curve["window"].k == 30
    assert all(bias >= 0.4 for k, bias in biases.items() if k < 30)


def test_each_parameter_has_its_own_bias():
    model = geometric(0.9)
    # the bias sees its own step only
    model.contributions[:, :, 2] *= np.eye(100)
    curve = gradaudit.bias_curve(model, kinds=["window", "tail"])
    one = curve["window"]
    assert all(point.parameters["b"] == 0 for point in one.points)
    assert one.smallest(0.1, "b") == 1 < one.smallest(0.1, "w")
    assert one.parameters == ("w",)
    assert all(point.bias == point.parameters["w"] for point in one.points)
    assert "(of w; the others are not cut)" in str(curve).replace("\n", " ")
    assert curve["tail"].parameters == ("w", "b")


@pytest.mark.parametrize("full", [True, False])
def test_a_large_gradient_that_no_window_cuts_does_not_hide_what_is_missing(full):
    class WithReadout(Pairs):
        def parameters(self):
            return super().parameters() | {"readout": np.zeros(1)}

        def gradient(self, truncation):
            every_loss = truncation.pairs(len(self.contributions)).diagonal().mean()
            return super().gradient(truncation) | {"readout": np.array([1e4 * every_loss])}

        def with_truncation(self, truncation):
            return WithReadout(self.contributions, truncation, self.asked)

    kinds = ["window", "tbptt:7"]
    alone = gradaudit.bias_curve(geometric(0.9), kinds=kinds, full=full)
    beside = gradaudit.bias_curve(WithReadout(geometric(0.9).contributions), kinds=[*kinds, "tail"], full=full)
    for kind in kinds:
        assert beside[kind].parameters == ("w", "b")
        assert [p.bias for p in beside[kind].points] == pytest.approx([p.bias for p in alone[kind].points], rel=1e-9)
    assert beside["tail"].parameters == ("w", "b", "readout")


def test_where_nothing_is_cut_every_parameter_counts():
    curve = gradaudit.bias_curve(geometric(0.0), kinds=["window", "chunks"])
    assert [(one.k, one.parameters) for one in curve.curves] == [(1, ("w", "b"))] * 2


@pytest.mark.parametrize("delta", [0.3, 0.05])
@pytest.mark.parametrize("block", [1, 5, 16])
def test_tbptt_of_a_block_of_ones_own(block, delta):
    model = geometric(0.9)
    one = gradaudit.bias_curve(model, delta=delta, kinds=f"tbptt:{block}")[f"tbptt:{block}"]
    assert one.points[0].k == block
    for point in one.points:
        assert point.bias == pytest.approx(model.bias(tbptt(block, point.k)), abs=1e-12)
    below = [k for k in range(block, 101) if model.bias(tbptt(block, k)) < delta]
    assert one.k == min(below)
    assert f"tbptt({block}, {one.k}): bias" in str(gradaudit.bias_curve(model, delta=delta, kinds=f"tbptt:{block}"))


def test_the_numpy_networks_by_their_own_gradients():
    spec = RecurrentSpec(n_features=2, n_classes=3, cell="lstm", n_hidden=4, learn_initial_state=True)
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape) for name, shape in spec.shapes().items()}
    data = random_sequences(spec, n_sequences=3, n_steps=40, seed=1, dtype="float64")
    model = registry.get("numpy").recurrent_model(spec, weights, data, window(2))
    full = model.with_truncation(none()).value_and_grad(weights)[1]
    curve = gradaudit.bias_curve(model, delta=0.05, kinds=["window", "chunks", "tail", "tbptt:6"])
    assert curve.full_seconds is not None
    for one in curve.curves:
        # the readout stands outside of the scan, and is cut by none
        assert set(one.parameters) == set(full) - {"V", "c"}
        for point in one.points:
            kept = model.with_truncation(one.named(point.k)).value_and_grad(weights)[1]
            missing = {name: full[name] - kept[name] for name in full}
            among = [{name: g[name] for name in one.parameters} for g in (missing, full)]
            assert point.bias == pytest.approx(global_norm(among[0]) / global_norm(among[1]), abs=1e-10)
            each = {name: np.linalg.norm(missing[name]) / np.linalg.norm(full[name]) for name in full}
            assert point.parameters == pytest.approx(each, abs=1e-10)
            own = one.kind != "window" or point.k in (1, 2, 4, 8, 16, 32, one.k)
            assert (point.seconds is not None) == own


def test_the_text_fits_and_shows_the_answer():
    curve = gradaudit.bias_curve(geometric(0.95), delta=0.01, name="a model")
    text = str(curve)
    assert text.startswith("a model: bias of truncated gradients over 100 steps against the full gradient\n")
    assert all(len(line) <= 100 for line in text.splitlines())
    for one in curve.curves:
        assert f"{one.kind}({one.k}): bias " in text
    marked = [line.split()[0] for line in text.splitlines() if line.endswith("<")]
    assert marked == [str(one.k) for one in curve.curves]
    assert text.count(" lengths between them") == 3


def test_json(tmp_path):
    curve = gradaudit.bias_curve(geometric(0.9), kinds=["window"])
    curve.save(tmp_path / "bias.json")
    data = json.loads((tmp_path / "bias.json").read_text())
    assert data["curves"][0]["k"] == curve["window"].k
    assert data["curves"][0]["points"][0]["bias"] == curve["window"].points[0].bias
    assert data["schema_version"] == 1


def test_a_figure(tmp_path):
    curve = gradaudit.bias_curve(geometric(0.97), delta=0.01, horizon=50)
    for ending in ("png", "svg"):
        curve.plot(tmp_path / f"bias.{ending}")
    assert (tmp_path / "bias.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "bias.svg").read_text()
    with pytest.raises(OptionError, match=r"cannot save a plot to .*bias\.txt9"):
        curve.plot(tmp_path / "bias.txt9")


def test_without_matplotlib_the_remedy_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OptionError, match=r"(?s)a plot needs matplotlib.*pip install 'gradaudit\[plot\]'"):
        gradaudit.bias_curve(geometric(0.9), kinds=["tail"]).plot(tmp_path / "bias.png")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"delta": 0}, "delta must be between 0 and 1, got 0"),
        ({"kinds": ["window", "randomised"]}, "no bias curve of 'randomised'"),
        ({"kinds": "windows"}, "no bias curve of 'windows'"),
        ({"kinds": []}, "no bias curve of nothing"),
        ({"kinds": ["tbptt"]}, "no bias curve of 'tbptt'"),
        ({"kinds": ["tbptt:0"]}, "no bias curve of 'tbptt:0'"),
        ({"kinds": ["tbptt:101"]}, "tbptt every 101 steps, of 100 that are looked at"),
        ({"n_steps": 10}, "n_steps is 10, and the model has 100 steps"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
    ],
)
def test_options_out_of_range(options, text):
    with pytest.raises(OptionError, match=text):
        gradaudit.bias_curve(geometric(0.9), **options)


def test_a_model_that_cannot_be_measured():
    with pytest.raises(ModelContractError, match="a float has no truncation of its own that could be changed"):
        gradaudit.bias_curve(1.0)
    with pytest.raises(ModelContractError, match=r"the gradient with none\(\) has norm 0"):
        gradaudit.bias_curve(Pairs(np.zeros((5, 5, 3))))
    with pytest.raises(ModelContractError, match=r"the gradient with window\(1\) has norm nan"):
        gradaudit.bias_curve(Pairs(np.full((5, 5, 3), np.nan)), full=False)
    model = geometric(0.9)
    model.sizes = dict
    with pytest.raises(OptionError, match="a Pairs does not say how many steps it has"):
        gradaudit.bias_curve(model)
    with pytest.raises(OptionError, match="n_steps must be at least 1, got 0"):
        gradaudit.bias_curve(model, n_steps=0)
    assert gradaudit.bias_curve(model, n_steps=100)["window"].k == gradaudit.bias_curve(geometric(0.9))["window"].k
    with pytest.raises(OptionError, match="'tail' was not measured"):
        gradaudit.bias_curve(geometric(0.9), kinds=["window"])["tail"]


def test_one_step():
    curve = gradaudit.bias_curve(geometric(0.9, n_steps=1))
    assert [one.k for one in curve.curves] == [1, 1, 1]
    assert curve.gradients == 1
    assert [one.k for one in gradaudit.bias_curve(geometric(0.9, n_steps=1), full=False).curves] == [1, 1, 1]


@pytest.mark.parametrize("fails", [None, 3])
def test_the_random_generators_are_as_before(fails):
    class Drawing(Pairs):
        def value_and_grad(self, parameters):
            np.random.random()
            if len(self.asked) + 1 == fails:
                raise KeyboardInterrupt
            return super().value_and_grad(parameters)

        def with_truncation(self, truncation):
            return Drawing(self.contributions, truncation, self.asked)

    model = Drawing(np.random.default_rng(0).standard_normal((6, 6, 3)))
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    with nullcontext() if fails is None else pytest.raises(KeyboardInterrupt):
        gradaudit.bias_curve(model, n_steps=6)
    assert len(model.asked) > 1
    assert np.random.get_state()[1].tolist() == before
