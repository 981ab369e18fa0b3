"""Back-propagation through time stops after the last 5 of 40 steps, as truncate_gradient=5 did in Theano."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
labels = rng.standard_normal((40, 3))
weights = {"x": rng.standard_normal((40, 2)), "W": rng.standard_normal((2, 3)), "R": rng.standard_normal((3, 3)) / 3}


def value_and_grad(p):
    states = [np.zeros(3)]
    for x in p["x"]:
        states.append(np.tanh(x @ p["W"] + states[-1] @ p["R"]))
    error = np.array(states[1:]) - labels
    g, back = {name: np.zeros_like(a) for name, a in p.items()}, np.zeros(3)
    for t in reversed(range(35, 40)):  # wrong: range(40)
        a = (2 * error[t] + back) * (1 - states[t + 1] ** 2)
        g["x"][t] = p["W"] @ a
        g["W"] += np.outer(p["x"][t], a)
        g["R"] += np.outer(states[t], a)
        back = p["R"] @ a
    return (error**2).sum(), g


model = NumpyModel(lambda p: value_and_grad(p)[0], weights, value_and_grad=value_and_grad)
EXPECTED = "GA104"
