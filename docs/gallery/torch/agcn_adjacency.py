"""The learned adjacency is detached, so that its two projections never learn.

Modelled on https://github.com/queenie88/A-GCN/issues/4.
"""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
nodes = torch.randn(6, 4, dtype=torch.float64)
labels = torch.randint(3, (6,))


def adjacency(p):
    scores = (nodes @ p["theta"]) @ (nodes @ p["phi"]).T
    return torch.softmax(scores, dim=1).detach()  # <- here


def loss(p):
    logits = adjacency(p) @ nodes @ p["out"]
    return torch.nn.functional.cross_entropy(logits, labels)


shapes = {"theta": (4, 5), "phi": (4, 5), "out": (4, 3)}
weights = {name: torch.randn(shape, dtype=torch.float64) / 2 for name, shape in shapes.items()}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA101"
