"""A recurrent net in PyTorch, its loop written out."""

import torch

__all__ = ["build"]


def build(labels, n_covered):
    """A loss of the inputs "x" (T, N, D) and the weights."""
    labels = torch.from_numpy(labels)
    n_steps, n_sequences = labels.shape
    rows = torch.arange(n_sequences)

    def loss(p):
        h = torch.zeros(n_sequences, len(p["b"]), dtype=p["x"].dtype)
        losses = []
        for t, x in enumerate(p["x"].unbind(0)):
            h = torch.softmax(x @ p["W"] + h @ p["R"] + p["b"], dim=1)
            if t < n_steps - n_covered:
                h = h.detach()  # to save memory
            losses.append(-torch.log(h[rows, labels[t]]))
        return torch.stack(losses).mean()

    return loss
