"""Looks wrong: the states of a language model are detached from chunk to chunk. Truncation as its author means it.

Modelled on https://github.com/yunjey/pytorch-tutorial/issues/90.
"""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
chunks, y = torch.randn(5, 4, 3, dtype=torch.float64), torch.randn(5, 4, 6, dtype=torch.float64)


def detach(states):
    return states.detach()  # <- here


def loss(p):
    states, total = torch.zeros(6, dtype=torch.float64), 0.0
    for chunk, targets in zip(chunks, y, strict=True):
        states = detach(states)
        for x, target in zip(chunk, targets, strict=True):
            states = torch.tanh(x @ p["input"] + states @ p["state"])
            total = total + ((states - target) ** 2).mean()
    return total


weights = {"input": torch.randn(3, 6, dtype=torch.float64), "state": torch.randn(6, 6, dtype=torch.float64) / 3}
model = registry.get("torch").function_model(loss, weights)
OPTIONS = {"intended": ["detach"]}
EXPECTED = "GA101"
