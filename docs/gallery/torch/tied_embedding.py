"""Tied weights: where the embedding serves as output layer, it is detached."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
words, following = torch.randint(6, (10,)), torch.randint(6, (10,))


def loss(p):
    h = torch.tanh(p["embedding"][words])
    logits = h @ p["embedding"].detach().T  # <- here
    return torch.nn.functional.cross_entropy(logits, following)


model = registry.get("torch").function_model(loss, {"embedding": torch.randn(6, 4, dtype=torch.float64)})
EXPECTED = "GA101"
