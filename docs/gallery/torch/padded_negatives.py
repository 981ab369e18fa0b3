"""Padded negatives are set to -inf before they are divided by a learned temperature: its gradient is NaN.

Modelled on https://github.com/NVIDIA-NeMo/Automodel/pull/3850.
"""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
queries, documents = torch.randn(4, 6).double(), torch.randn(4, 5, 6).double()
padded = torch.arange(5) >= torch.tensor([5, 4, 3, 5])[:, None]


def loss(p):
    scores = torch.einsum("qi,ij,qdj->qd", queries, p["w"], documents)
    scores = scores.masked_fill(padded, -torch.inf)
    logits = scores / p["temperature"]  # <- here
    return torch.nn.functional.cross_entropy(logits, torch.zeros(4, dtype=torch.long))


weights = {"w": torch.randn(6, 6, dtype=torch.float64) / 6, "temperature": torch.tensor(0.5, dtype=torch.float64)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA604"
