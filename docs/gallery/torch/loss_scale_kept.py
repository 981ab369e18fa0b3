"""The loss is scaled by 1024 for half precision, and the gradient never unscaled."""

import torch

torch.manual_seed(0)
x, y = torch.randn(32, 4).double(), torch.randn(32, 2).double()


def mse(w):
    return torch.nn.functional.mse_loss(torch.tanh(x @ w), y)


class TrainingStep:
    def parameters(self):
        return {"w": torch.linspace(-1, 1, 8).double().reshape(4, 2).numpy()}

    def loss(self, p):
        return mse(torch.tensor(p["w"])).numpy()[()]

    def value_and_grad(self, p):
        w = torch.tensor(p["w"], requires_grad=True)
        (1024 * mse(w)).backward()
        return self.loss(p), {"w": w.grad.numpy()}  # wrong: / 1024


model = TrainingStep()
EXPECTED = "GA301"
