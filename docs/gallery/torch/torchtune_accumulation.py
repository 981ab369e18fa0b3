"""Gradient accumulation averages the means of micro-batches with different numbers of tokens.

Modelled on https://github.com/meta-pytorch/torchtune/issues/1875.
"""

import torch

torch.manual_seed(0)
hidden, targets = torch.randn(12, 4).double(), torch.randint(5, (12,))
micro_batches = [slice(0, 7), slice(7, 9), slice(9, 12)]


def token_mean(w, part):
    return torch.nn.functional.cross_entropy(hidden[part] @ w, targets[part])


class TrainingStep:
    def parameters(self):
        return {"head": torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).double().numpy()}

    def loss(self, p):
        return token_mean(torch.tensor(p["head"]), slice(None)).numpy()[()]

    def value_and_grad(self, p):
        w = torch.tensor(p["head"], requires_grad=True)
        for part in micro_batches:
            (token_mean(w, part) / len(micro_batches)).backward()  # wrong: weighted by its tokens
        return self.loss(p), {"head": w.grad.numpy()}


model = TrainingStep()
EXPECTED = "GA901"
MISSES = "GA901, unexplained: no single factor, and no finding knows weights of micro-batches"
