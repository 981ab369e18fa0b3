"""The definition of a truncated gradient for every cell, written out naively; no shared code with the backends.

For every pair (loss step s, use step u) the derivative of loss_s through the weights as they are used at step u, by a
complex step with the weights of that one step displaced. A truncation is then a sum over some of the pairs.
"""

from __future__ import annotations

import numpy as np

STEP = 1e-30


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


ACTIVATIONS = {
    "identity": lambda a: a,
    "tanh": np.tanh,
    "relu": lambda a: np.where(a.real > 0, a, 0),
    "sigmoid": sigmoid,
    "softmax": lambda a: np.exp(a) / np.exp(a).sum(-1, keepdims=True),
}


def times(x, w):
    """(..., N, I) times (..., I, J), with any leading axes."""
    return np.einsum("...ni,...ij->...nj", x, w)


def cell(spec, w, state, x):
    """One step of one layer; w has leading axes, states and x are (..., N, .)."""
    h = state[0]
    width = h.shape[-1]
    a = times(x, w["W"]) + w["b"][..., None, :]
    if spec.cell == "elman":
        return (ACTIVATIONS[spec.activation](a + times(h, w["R"])),)
    parts = [a[..., i * width : (i + 1) * width] for i in range(a.shape[-1] // width)]
    own = [w["R"][..., i * width : (i + 1) * width] for i in range(len(parts))]
    if spec.cell == "lstm":
        c = state[1]
        i, f, g, o = (p + times(h, r) for p, r in zip(parts, own, strict=True))
        if spec.peepholes:
            i, f = i + w["P"][..., 0, None, :] * c, f + w["P"][..., 1, None, :] * c
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        if spec.peepholes:
            o = o + w["P"][..., 2, None, :] * c
        return sigmoid(o) * np.tanh(c), c
    r, z = (sigmoid(p + times(h, q)) for p, q in zip(parts[:2], own[:2], strict=True))
    if spec.cell == "gru":
        n = np.tanh(parts[2] + r * (times(h, own[2]) + w["bn"][..., None, :]))
    else:
        n = np.tanh(parts[2] + times(r * h, own[2]))
    return ((1 - z) * n + z * h,)


def suffixes(spec, *, reverse):
    return [(f"_l{i}" if spec.n_layers > 1 else "") + ("_reverse" if reverse else "") for i in range(spec.n_layers)]


def one_step(spec, w, states, x, mask, names):
    """All layers, one after the other; a masked sequence keeps its states."""
    after, below = [], x
    for suffix, state in zip(names, states, strict=True):
        own = {n: w[n + suffix] for n in ("W", "R", "b", "bn", "P") if n + suffix in w}
        new = cell(spec, own, state, below)
        new = tuple(np.where(mask[:, None], a, b) for a, b in zip(new, state, strict=True))
        after.append(new)
        below = new[0]
    return after


def first_states(spec, w, data, names):
    n, width = len(data.features), spec.n_classes if spec.n_hidden is None else spec.n_hidden
    parts = ("h", "c") if spec.cell == "lstm" else ("h",)
    states = []
    for index, suffix in enumerate(names):
        own = []
        for j, part in enumerate(parts):
            start = np.zeros((n, width))
            if data.state is not None:
                at = (index * len(parts) + j) * width
                start = data.state[:, at : at + width]
            if spec.learn_initial_state:
                start = start + w[f"{part}0{suffix}"][..., None, :]
            own.append(start)
        states.append(tuple(own))
    return states


def entropies(spec, outputs, labels):
    """(..., N)"""
    probable = spec.n_hidden is None and spec.cell == "elman" and spec.activation == "softmax"
    p = outputs if probable else ACTIVATIONS["softmax"](outputs)
    return -np.log(p[..., np.arange(len(labels)), labels])


class Side:
    """One direction of a network, in its own order of time."""

    def __init__(self, spec, weights, data, *, reverse):
        self.spec, self.names = spec, suffixes(spec, reverse=reverse)
        order = slice(None, None, -1) if reverse else slice(None)
        self.x = data.features[:, order].swapaxes(0, 1)
        self.mask = (np.ones(data.labels.shape, bool) if data.mask is None else data.mask)[:, order].T
        self.x = np.where(self.mask[..., None], self.x, 0)
        self.w = {n: w for n, w in weights.items() if n.endswith("_reverse") == reverse and n not in ("V", "c")}
        self.data = data
        width = spec.n_hidden
        self.readout = None if width is None else weights["V"][width:] if reverse else weights["V"][:width]
        self.states = [first_states(spec, self.w, data, self.names)]
        for x, mask in zip(self.x, self.mask, strict=True):
            self.states.append(one_step(spec, self.w, self.states[-1], x, mask, self.names))

    def logits(self, states):
        top = states[-1][0]
        return top if self.readout is None else times(top, self.readout)

    def derivatives(self, others, labels, loss_weights):
        """{name: (T, T, N, *shape)}: of the losses of step s through the use at step u, at [s-1, u-1]."""
        n_steps, n_sequences = len(self.x), self.x.shape[1]
        found = {n: np.zeros((n_steps, n_steps, n_sequences, *w.shape)) for n, w in self.w.items()}
        for name, w in self.w.items():
            unit = np.eye(w.size).reshape(w.size, *w.shape)
            moved = {n: np.asarray(v)[None].astype(complex) for n, v in self.w.items()}
            moved[name] = w + 1j * STEP * unit
            still = {n: np.asarray(v)[None].astype(complex) for n, v in self.w.items()}
            initial = name[:2] in ("h0", "c0")
            for u in range(1, 2 if initial else n_steps + 1):
                states = first_states(self.spec, moved, self.data, self.names) if initial else self.states[u - 1]
                for s in range(u, n_steps + 1):
                    use = moved if s == u and not initial else still
                    states = one_step(self.spec, use, states, self.x[s - 1], self.mask[s - 1], self.names)
                    losses = entropies(self.spec, self.logits(states) + others[s - 1], labels[s - 1])
                    slopes = np.imag(losses) / STEP * loss_weights[s - 1]
                    slopes = np.where(loss_weights[s - 1] == 0, 0, slopes)
                    found[name][s - 1, u - 1] = np.broadcast_to(slopes, (w.size, n_sequences)).T.reshape(
                        n_sequences, *w.shape
                    )
        return found


def pair_derivatives(spec, weights, data):
    """The loss, the derivatives of each direction by pairs in its own time, and the gradient of the readout."""
    sides = [Side(spec, weights, data, reverse=r) for r in (False, True)[: 1 + spec.bidirectional]]
    mask = np.ones(data.labels.shape, bool) if data.mask is None else data.mask
    loss_weights = mask.T / mask.sum()
    if spec.outputs == "last":
        loss_weights = np.zeros(mask.T.shape)
        loss_weights[-1] = 1 / len(mask)
    labels = data.labels.T
    added = [np.stack([side.logits(s) for s in side.states[1:]]) for side in sides]
    bias = weights.get("c", 0.0)
    if len(sides) == 2:
        added[1] = added[1][::-1]
    logits = sum(added) + bias
    losses = np.stack([entropies(spec, z, y) for z, y in zip(logits, labels, strict=True)])
    loss = np.where(loss_weights == 0, 0, loss_weights * losses).sum()
    found = [sides[0].derivatives(logits - added[0], labels, loss_weights)]
    if len(sides) == 2:
        found.append(sides[1].derivatives((logits - added[1])[::-1], labels[::-1], loss_weights[::-1]))
    readout = {}
    if spec.n_hidden is not None:
        e = (ACTIVATIONS["softmax"](logits) - np.eye(spec.n_classes)[labels]) * loss_weights[..., None]
        tops = [np.stack([s[-1][0] for s in side.states[1:]]) for side in sides]
        if len(sides) == 2:
            tops[1] = tops[1][::-1]
        readout = {"V": np.einsum("tnh,tnc->hc", np.concatenate(tops, axis=-1), e), "c": e.sum((0, 1))}
    return loss, found, readout


def gradient_of(truncation, found, readout, n_sequences):
    """The truncated gradient by name, from `pair_derivatives`."""
    n_steps = len(next(iter(found[0].values())))
    pairs = np.array(
        [[truncation.keeps(s, u, n_steps) for u in range(1, n_steps + 1)] for s in range(1, n_steps + 1)], float
    )
    weights = np.repeat(pairs[:, :, None], n_sequences, axis=2)
    if truncation.kind == "randomised":
        crossing = truncation.gates(n_steps, n_sequences).state
        for s in range(1, n_steps + 1):
            for u in range(1, s + 1):
                weights[s - 1, u - 1] = crossing[u:s].prod(axis=0)
    gradients = {}
    for side in found:
        for name, d in side.items():
            own = weights * crossing[0] if truncation.kind == "randomised" and name[:2] in ("h0", "c0") else weights
            gradients[name] = np.tensordot(own, d, axes=3)
    return gradients | readout
