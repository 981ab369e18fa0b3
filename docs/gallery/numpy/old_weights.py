"""The backward pass uses the weights that were copied when the layer was built."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((20, 4)), rng.standard_normal(20)
weights = {"w": rng.standard_normal(4)}


class Layer:
    def __init__(self, w):
        self.w = w - 0.1  # before the last step of the optimiser

    def loss(self, p):
        return ((np.tanh(x @ p["w"]) - y) ** 2).mean()

    def gradient(self, _):
        h = np.tanh(x @ self.w)  # wrong: p["w"]
        return {"w": x.T @ (2 * (h - y) * (1 - h**2)) / 20}


layer = Layer(weights["w"])
model = NumpyModel(layer.loss, weights, gradient=layer.gradient)
EXPECTED = "GA804"
