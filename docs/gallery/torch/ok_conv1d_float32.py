"""Looks wrong: a check with a step of 1e-6 rejects a Conv1d in float32. Its gradient is right.

Modelled on https://github.com/pytorch/pytorch/issues/114217.
"""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
conv = torch.nn.Conv1d(3, 4, kernel_size=3)
x = torch.randn(2, 3, 10)


def loss(p):
    return torch.func.functional_call(conv, p, (x.to(p["weight"].dtype),)).pow(2).mean()


model = registry.get("torch").function_model(loss, dict(conv.named_parameters()))
EXPECTED = ""
