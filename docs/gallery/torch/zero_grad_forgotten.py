"""The training loop never calls zero_grad: each gradient is the sum of all so far.

Modelled on https://github.com/facebookresearch/nwm/issues/16.
"""

import torch

torch.manual_seed(0)
x, y = torch.randn(32, 4).double(), torch.randn(32, 2).double()
net = torch.nn.Linear(4, 2).double()


def mse():
    return torch.nn.functional.mse_loss(torch.tanh(net(x)), y)


class TrainingStep:
    def parameters(self):
        return {name: w.detach().numpy().copy() for name, w in net.named_parameters()}

    def load(self, p):
        net.load_state_dict({name: torch.tensor(w) for name, w in p.items()})

    def loss(self, p):
        self.load(p)
        return mse().detach().numpy()[()]

    def value_and_grad(self, p):
        self.load(p)
        value = mse()
        value.backward()  # wrong: net.zero_grad() before
        return value.detach().numpy()[()], {name: w.grad.numpy().copy() for name, w in net.named_parameters()}


mse().backward()  # the last step
model = TrainingStep()
EXPECTED = "GA802"
VERDICT = "DISAGREE"
