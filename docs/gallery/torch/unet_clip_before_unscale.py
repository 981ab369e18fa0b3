"""The gradient is clipped to norm 1 while it still has the loss scale of mixed precision.

Modelled on https://github.com/milesial/Pytorch-UNet/issues/468.
"""

import torch

torch.manual_seed(0)
SCALE, x, y = 2.0**16, torch.randn(32, 4), torch.randn(32, 2)
start = {"w": torch.randn(4, 2), "b": torch.zeros(2)}


def mse(w, b):
    return torch.nn.functional.mse_loss(torch.tanh(x.to(w.dtype) @ w + b), y.to(w.dtype))


class TrainingStep:
    def __init__(self, dtype=torch.float32):
        self.dtype = dtype

    def parameters(self):
        return {name: w.to(self.dtype).numpy() for name, w in start.items()}

    def loss(self, p):
        return mse(*map(torch.tensor, p.values())).numpy()[()]

    def value_and_grad(self, p):
        leaves = {name: torch.tensor(w, requires_grad=True) for name, w in p.items()}
        (mse(*leaves.values()) * SCALE).backward()
        torch.nn.utils.clip_grad_norm_(leaves.values(), 1.0)  # wrong: unscale first
        return self.loss(p), {name: (w.grad / SCALE).numpy() for name, w in leaves.items()}

    def twin(self):
        return TrainingStep(torch.float64) if self.dtype == torch.float32 else None


model = TrainingStep()
EXPECTED = "GA304"
