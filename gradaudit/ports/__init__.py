"""Ports of one model: with the same parameters, are they the same function? If not, what would make them so?

Losses and gradients are those of float64 twins where there are twins. The gradient of a port is mapped back onto the
first model's parameters. Where a port is another function, its parameters are handed over in other arrangements, one
after another, until loss and gradient agree: that is proof of what differs.
"""
