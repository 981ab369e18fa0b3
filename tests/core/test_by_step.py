"""The gradient of the inputs step by step: a cliff, saw teeth, a band, and nothing where the gradient vanishes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.errors import OptionError
from gradaudit.recurrent import chunks, none, tail, window

T = 12
W, R = 0.8 * np.random.default_rng(1).standard_normal((2, 3)), 0.5 * np.random.default_rng(2).standard_normal((3, 3))


class Rnn:
    """h' = tanh(x W + h R), the loss is the mean of sin(h); its gradient by the pairs that a truncation keeps."""

    def __init__(self, truncation, scale=1.0, fault=None):
        self.truncation_, self.r, self.fault = truncation, scale * R, fault
        self.x = np.random.default_rng(0).standard_normal((T, 2))

    def parameters(self):
        return {"x": self.x, "r": self.r}

    def states(self, p):
        h = [np.zeros(3)]
        for x in p["x"]:
            h.append(np.tanh(x @ W + h[-1] @ p["r"]))
        return h

    def loss(self, p):
        return np.mean(np.sin(self.states(p)[1:]))

    def value_and_grad(self, p):
        h = self.states(p)
        gradients = {"x": np.zeros((T, 2)), "r": np.zeros((3, 3))}
        for s in range(1, T + 1):
            adjoint = np.cos(h[s]) / (3 * T)
            for u in range(s, 0, -1):
                adjoint = adjoint * (1 - h[u] ** 2)
                if self.truncation_.keeps(s, u, T):
                    gradients["x"][u - 1] += W @ adjoint
                    gradients["r"] += np.outer(h[u - 1], adjoint)
                adjoint = p["r"] @ adjoint
        if self.fault is not None:
            self.fault(gradients["x"])
        return self.loss(p), gradients


def runs(model, **options):
    view = gradaudit.by_step(model, tensor="x", **options)
    return [(first, last, verdict.name) for first, last, verdict in view.runs()], view


def test_a_right_gradient_is_right_at_every_step():
    for scale in (1.0, 1e-3, 0.0):  # also where it vanishes at once
        found, view = runs(Rnn(none(), scale))
        assert found == [(1, T, "AGREE")]
        assert view.verdict is Verdict.AGREE
        np.testing.assert_allclose(view.ratio, 1, rtol=1e-6)


def test_a_tail_is_a_cliff():
    found, view = runs(Rnn(tail(4)))
    assert found == [(1, 8, "DISAGREE"), (9, T, "AGREE")]
    assert (view.analytic[:8] == 0).all()
    assert (view.ratio[:8] == 0).all()
    assert str(view).splitlines()[0] == f"DISAGREE   x by step, 12 steps along axis 0, {view.evaluations} evaluations"
    assert [line.split()[0] for line in str(view).splitlines()[3:5]] == ["1..8", "9..12"]


def test_chunks_are_saw_teeth():
    _, view = runs(Rnn(chunks(4)))
    right = [i + 1 for i, verdict in enumerate(view.verdicts) if verdict is Verdict.AGREE]
    assert right == [9, 10, 11, 12]  # the last block loses nothing
    gap = np.abs(view.ratio - 1)
    assert gap[3] > 1.5 * gap[:3].max()  # the last step of a block loses most


def test_a_window_is_a_band():
    _, view = runs(Rnn(window(4)))
    assert [v is Verdict.AGREE for v in view.verdicts[-4:]] == [True] * 4
    assert all(v is Verdict.DISAGREE for v in view.verdicts[:8])
    assert (view.analytic != 0).all()


def test_one_wrong_step():
    def fault(g):
        g[5] *= 1.01

    assert runs(Rnn(none(), fault=fault))[0] == [(1, 5, "AGREE"), (6, 6, "DISAGREE"), (7, T, "AGREE")]


def test_an_axis_from_the_end():
    model = Rnn(tail(4))
    assert gradaudit.by_step(model, tensor="x", axis=-2).axis == 0


def test_a_name_with_brackets_is_no_pattern():
    inner = Rnn(tail(4))

    class Named:
        def parameters(self):
            return {"x[0]": inner.x, "x0": inner.r}

        def loss(self, p):
            return inner.loss({"x": p["x[0]"], "r": p["x0"]})

        def value_and_grad(self, p):
            loss, g = inner.value_and_grad({"x": p["x[0]"], "r": p["x0"]})
            return loss, {"x[0]": g["x"], "x0": g["r"]}

    view = gradaudit.by_step(Named(), tensor="x[0]")
    assert [run[:2] for run in view.runs()] == [(1, 8), (9, T)]


def test_eight_evaluations_a_step():
    model = Rnn(none())
    one = gradaudit.audit(model, parameters="x").evaluations
    _, view = runs(model)
    assert view.evaluations - one == 8 * T


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor": "y"}, "there is no tensor 'y' (in by_step())\n\nHint: one of x, r"),
        ({"tensor": "x", "axis": 2}, "x has shape (12, 2), and no axis 2"),
        ({"tensor": "x", "max_evaluations": 80}, "12 steps take more than max_evaluations=80 forward passes"),
    ],
)
def test_refused(options, message):
    with pytest.raises(OptionError) as error:
        gradaudit.by_step(Rnn(none()), **options)
    assert message in str(error.value)


def test_a_random_loss_has_no_view():
    model = Rnn(none())
    rng = np.random.default_rng(0)
    model.loss = lambda p: Rnn.loss(model, p) + rng.standard_normal()
    with pytest.raises(OptionError, match="no numeric derivative to compare with"):
        gradaudit.by_step(model, tensor="x")


def test_the_picture_shows_a_cliff_teeth_a_band_and_a_slope():
    def picture(truncation, scale=1.0):
        lines = runs(Rnn(truncation, scale))[1].picture().splitlines()
        return [line.split()[-1] for line in lines]

    sizes, off = picture(tail(4))
    assert off == "0" * (T - 4) + "." * 4
    assert sizes == picture(none())[0]
    assert picture(none())[1] == "." * T
    # just before a cut everything is missing, just behind it little
    digits = [9 if c == "." else int(c) for c in picture(chunks(4), 0.3)[1]]
    assert max(digits[3], digits[7]) < min(digits[0], digits[4])
    assert picture(chunks(4))[1].endswith("....")
    window_ = picture(window(3))[1]
    assert window_.endswith("...")
    assert "." not in window_[:-3]
    # nothing reaches the loss but from the step itself
    assert picture(none(), 0.0)[1] == "." * T


def test_the_picture_has_lines_of_eighty_steps():
    view = runs(Rnn(tail(4)))[1]
    numbers = {name: np.tile(getattr(view, name), 15) for name in ("analytic", "numeric", "bound")}
    long = replace(view, verdicts=view.verdicts * 15, **numbers)
    lines = long.picture().splitlines()
    assert [line.split()[0] for line in lines[::2]] == ["1", "81", "161"]
    assert [len(line.split()[-1]) for line in lines] == [80, 80, 80, 80, 20, 20]
    assert long.picture() in str(long)
    assert all(len(line) <= 100 for line in str(long).splitlines())
    numbers = {name: np.tile(getattr(view, name), 50) for name in ("analytic", "numeric", "bound")}
    assert "off" not in str(replace(view, verdicts=view.verdicts * 50, **numbers))
    assert "off" not in str(runs(Rnn(none()))[1])


def test_a_figure(tmp_path):
    for truncation in (none(), tail(4)):
        runs(Rnn(truncation))[1].plot(tmp_path / f"{truncation.kind}.png")
        assert (tmp_path / f"{truncation.kind}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OptionError, match="cannot save a plot to"):
        runs(Rnn(none()))[1].plot(tmp_path / "steps.xyz")
    with pytest.raises(OptionError, match="there is no folder"):
        runs(Rnn(none()))[1].plot(tmp_path / "no_such" / "steps.png")
