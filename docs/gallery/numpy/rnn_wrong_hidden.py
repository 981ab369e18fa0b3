"""The backward pass of a recurrent net multiplies by hiddens[t] where it needs hiddens[t - 1].

Modelled on https://github.com/VikParuchuri/zero_to_gpt/issues/9.
"""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((6, 3)), rng.standard_normal((6, 2))
shapes = {"input": (3, 4), "hidden": (4, 4), "bias": (4,), "output": (4, 2)}


def value_and_grad(p):
    h, hiddens = np.zeros(4), []
    for step in x:
        h = np.tanh(step @ p["input"] + h @ p["hidden"] + p["bias"])
        hiddens.append(h)
    error = np.array(hiddens) @ p["output"] - y
    g, back = {name: np.zeros(shape) for name, shape in shapes.items()}, np.zeros(4)
    for t in reversed(range(6)):
        g["output"] += np.outer(hiddens[t], error[t])
        a = (error[t] @ p["output"].T + back) * (1 - hiddens[t] ** 2)
        if t > 0:
            g["hidden"] += np.outer(hiddens[t], a)  # wrong: hiddens[t - 1]
        g["input"] += np.outer(x[t], a)
        g["bias"] += a
        back = a @ p["hidden"].T
    return 0.5 * (error**2).sum(), g


weights = {name: rng.standard_normal(shape) / 2 for name, shape in shapes.items()}
model = NumpyModel(lambda p: value_and_grad(p)[0], weights, value_and_grad=value_and_grad)
EXPECTED = "GA901"
MISSES = "GA901, unexplained: only the tensor is named; no finding knows a wrong time index inside a sum over steps"
