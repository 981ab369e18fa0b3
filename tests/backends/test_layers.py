"""Our recurrent layers and those of the libraries, at converted weights: the same states and the same gradients.

Lasagne cannot be installed any more: its layers are written out here, as its source has them.
"""

from __future__ import annotations

import numpy as np
import pytest

from gradaudit import conventions
from gradaudit.backends.numpy import backend as reference
from gradaudit.conventions import from_library, gradients_to_library, to_library
from gradaudit.errors import ModelContractError, OptionError
from gradaudit.mapping import corresponding
from gradaudit.recurrent import Problem, RecurrentSpec, one_way, random_sequences
from tests import conftest
from tests.backends.test_networks import assert_close

TESTED = conftest.tested()
N, T, D, H, C = 3, 6, 2, 4, 3
DATA = random_sequences(RecurrentSpec(n_features=D, n_classes=C), n_sequences=N, n_steps=T, seed=3, dtype="float64")
X, LABELS = DATA.features, DATA.labels
CHOSEN = np.eye(C)[LABELS]


def numbers(shapes):
    """Weights at which no gate is saturated, and no two are alike."""
    rng = np.random.default_rng(7)
    return {name: 0.6 * rng.standard_normal(shape) for name, shape in shapes.items()}


def network(options, weights):
    """Ours, with a readout: its model, spec and all its weights."""
    spec = RecurrentSpec(n_classes=C, **options)
    width = (1 + spec.bidirectional) * H
    every = weights | {"V": np.random.default_rng(1).standard_normal((width, C)), "c": np.linspace(-1, 1, C)}
    return spec, every, Problem(spec=spec, weights=every, data=DATA)


def our_states(options, weights):
    """h of the uppermost layer at all steps, (N, T, H), or (N, T, 2 H) in the order of time of the data."""
    spec, every, problem = network(options, weights)
    sides = [problem]
    if spec.bidirectional:
        sides = [one_way(problem, reverse=r, offset=np.zeros((T, N, C))) for r in (False, True)]
    last = (spec.n_layers - 1) * len(spec.components) * H
    each = [reference.network(side).states(every)[1:, :, last : last + H] for side in sides]
    return np.concatenate([h[::-1] if i else h for i, h in enumerate(each)], axis=2).swapaxes(0, 1)


def check(library, cell, arrays, run, *, bias=True, **altered):
    """The library's layer against ours, at the library's weights and then at ours.

    Args:
        library: its name.
        cell: ours.
        arrays: the parameters of its layer, by their own names.
        run: arrays, V, c -> the states (N, T, H), and the gradients of the mean cross-entropy by the library.
        bias: whether it has one.
        altered: options that the weights do not tell.
    """
    options, weights = from_library(library, cell, arrays)
    options |= altered
    spec, every, problem = network(options, weights)
    _, gradients = reference.network(problem).model.value_and_grad(every)
    states, expected = run(arrays, every["V"], every["c"])
    np.testing.assert_allclose(our_states(options, weights), states, rtol=0, atol=1e-12)
    assert_close(gradients_to_library(library, cell, gradients, bias=bias), expected, 1e-10)

    back = to_library(library, cell, every, bias=bias)
    assert {n: a.shape for n, a in back.items()} == {n: a.shape for n, a in arrays.items()}
    np.testing.assert_allclose(run(back, every["V"], every["c"])[0], states, rtol=0, atol=1e-12)
    again = from_library(library, cell, back)[1]
    assert list(again) == list(weights)
    assert all(np.array_equal(again[name], weights[name]) for name in weights)
    return spec


class TestTorch:
    __test__ = "torch" in TESTED

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize(("n_layers", "bidirectional"), [(1, False), (2, False), (1, True)])
    @pytest.mark.parametrize("kind", ["tanh", "relu", "gru", "lstm"])
    def test_layers(self, kind, n_layers, bidirectional, bias):
        import torch

        make = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}.get(kind, torch.nn.RNN)
        more = {"nonlinearity": kind} if kind in ("tanh", "relu") else {}
        options = {"num_layers": n_layers, "bidirectional": bidirectional, "bias": bias, "batch_first": True}
        layer = make(D, H, dtype=torch.float64, **options, **more)

        def run(arrays, readout, offset):
            layer.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in arrays.items()})
            layer.zero_grad()
            states, _ = layer(torch.from_numpy(X))
            logits = states @ torch.from_numpy(readout) + torch.from_numpy(offset)
            torch.nn.functional.cross_entropy(logits.reshape(-1, C), torch.from_numpy(LABELS).reshape(-1)).backward()
            return states.detach().numpy(), {name: p.grad.numpy().copy() for name, p in layer.named_parameters()}

        arrays = numbers({name: tuple(p.shape) for name, p in layer.named_parameters()})
        cell = "elman" if more else kind
        spec = check("torch", cell, arrays, run, bias=bias, **({"activation": kind} if more else {}))
        assert (spec.n_layers, spec.bidirectional) == (n_layers, bidirectional)


class TestKeras:
    __test__ = "tensorflow" in TESTED

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("bidirectional", [False, True])
    @pytest.mark.parametrize("cell", ["elman", "gru", "gru_before", "lstm"])
    def test_layers(self, cell, bidirectional, bias):
        import keras
        import tensorflow as tf

        make = {"elman": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM}.get(cell, keras.layers.GRU)
        more = {"reset_after": cell == "gru"} if cell.startswith("gru") else {}
        layer = make(H, return_sequences=True, dtype="float64", use_bias=bias, **more)
        parts = {"": layer}
        if bidirectional:
            layer = keras.layers.Bidirectional(layer, dtype="float64")
        layer.build((N, T, D))
        if bidirectional:
            parts = {"": layer.forward_layer, "_reverse": layer.backward_layer}
        variables = {v.name + suffix: v for suffix, part in parts.items() for v in part.weights}

        def run(arrays, readout, offset):
            for name, variable in variables.items():
                variable.assign(arrays[name])
            with tf.GradientTape() as tape:
                states = layer(tf.constant(X))
                logits = states @ tf.constant(readout) + tf.constant(offset)
                loss = -tf.reduce_mean(tf.reduce_sum(tf.constant(CHOSEN) * tf.nn.log_softmax(logits), axis=-1))
            found = tape.gradient(loss, [v.value for v in variables.values()])
            return states.numpy(), {name: g.numpy() for name, g in zip(variables, found, strict=True)}

        check("keras", cell, numbers({name: tuple(v.shape) for name, v in variables.items()}), run, bias=bias)


class TestJax:
    __test__ = "jax" in TESTED

    @pytest.fixture(autouse=True)
    def double(self):
        import jax

        with jax.enable_x64(True):
            yield

    @staticmethod
    def runs(states):
        """``run`` of `check`, from a function of arrays by name that gives the states."""
        import jax
        from jax import numpy as jnp

        def loss(arrays, readout, offset):
            h = states(arrays)
            return -jnp.mean(jnp.sum(CHOSEN * jax.nn.log_softmax(h @ readout + offset), axis=-1)), h

        def run(arrays, readout, offset):
            there = {name: jnp.asarray(a) for name, a in arrays.items()}
            found, h = jax.grad(loss, has_aux=True)(there, readout, offset)
            return np.asarray(h), {name: np.asarray(g) for name, g in found.items()}

        return run

    @pytest.mark.parametrize("name", ["SimpleCell", "GRUCell", "LSTMCell", "OptimizedLSTMCell"])
    def test_linen(self, name):
        import jax
        from flax import linen
        from flax.traverse_util import flatten_dict, unflatten_dict

        cell = getattr(linen, name)(H, param_dtype="float64")
        variables = jax.eval_shape(linen.RNN(cell).init, jax.random.key(0), X)
        flat = flatten_dict(variables["params"]["cell"], sep=".")

        def states(arrays):
            return linen.RNN(cell).apply({"params": {"cell": unflatten_dict(arrays, sep=".")}}, X)

        ours = {"SimpleCell": "elman", "GRUCell": "gru"}.get(name, "lstm")
        check("flax", ours, numbers({n: a.shape for n, a in flat.items()}), self.runs(states))

    @pytest.mark.parametrize("name", ["SimpleCell", "GRUCell", "LSTMCell", "OptimizedLSTMCell"])
    def test_nnx(self, name):
        from flax import nnx
        from flax.traverse_util import flatten_dict, unflatten_dict

        double = {"dtype": "float64", "param_dtype": "float64"}
        graph, state = nnx.split(nnx.RNN(getattr(nnx, name)(D, H, rngs=nnx.Rngs(0), **double)))
        pure = nnx.to_pure_dict(state)
        flat = flatten_dict(pure["cell"], sep=".")
        kept = {n: a for n, a in flat.items() if n.rsplit(".", 1)[-1] in ("kernel", "bias")}

        def states(arrays):
            nnx.replace_by_pure_dict(state, pure | {"cell": unflatten_dict(flat | arrays, sep=".")})
            return nnx.merge(graph, state)(X)

        library = "nnx_apart" if name == "LSTMCell" else "nnx"
        ours = {"SimpleCell": "elman", "GRUCell": "gru"}.get(name, "lstm")
        check(library, ours, numbers({n: a.shape for n, a in kept.items()}), self.runs(states))

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("cell", ["gru", "lstm"])
    def test_equinox(self, cell, bias):
        import equinox as eqx
        import jax
        from jax import numpy as jnp

        make = {"gru": eqx.nn.GRUCell, "lstm": eqx.nn.LSTMCell}[cell]
        layer = make(D, H, use_bias=bias, key=jax.random.key(0))
        own = ["weight_ih", "weight_hh"] + bias * (["bias"] + ["bias_n"] * (cell == "gru"))

        def states(arrays):
            there = eqx.tree_at(lambda m: [getattr(m, n) for n in own], layer, [arrays[n] for n in own])

            def step(state, x):
                state = there(x, state)
                return state, state[0] if cell == "lstm" else state

            zero = jnp.zeros(H)
            begin = (zero, zero) if cell == "lstm" else zero
            return jax.vmap(lambda x: jax.lax.scan(step, begin, x)[1])(jnp.asarray(X))

        check("equinox", cell, numbers({n: getattr(layer, n).shape for n in own}), self.runs(states), bias=bias)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def lasagne(cell, p, *, peepholes):
    """The states of Lasagne's layers, (N, T, H): ``get_output_for`` of `lasagne.layers.recurrent`, in NumPy."""
    h = np.ones((N, 1)) @ p["hid_init"]
    c = np.ones((N, 1)) @ p["cell_init"] if cell == "lstm" else None
    seen = []

    def gate(word, x, h):
        return x @ p[f"W_in_to_{word}"] + h @ p[f"W_hid_to_{word}"] + p[f"b_{word}"]

    for x in X.swapaxes(0, 1):
        if cell == "elman":
            a = x @ p["W_in_to_hid"] + h @ p["W_hid_to_hid"] + p["b"]
            h = np.where(a.real > 0, a, 0)
        elif cell == "gru":
            r, u = sigmoid(gate("resetgate", x, h)), sigmoid(gate("updategate", x, h))
            n = x @ p["W_in_to_hidden_update"] + p["b_hidden_update"] + r * (h @ p["W_hid_to_hidden_update"])
            h = (1 - u) * h + u * np.tanh(n)
        else:
            i, f, g, o = (gate(word, x, h) for word in ("ingate", "forgetgate", "cell", "outgate"))
            if peepholes:
                i, f = i + c * p["W_cell_to_ingate"], f + c * p["W_cell_to_forgetgate"]
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            if peepholes:
                o = o + c * p["W_cell_to_outgate"]
            h = sigmoid(o) * np.tanh(c)
        seen.append(h)
    return np.stack(seen, axis=1)


def lasagne_shapes(cell, *, peepholes):
    shapes = {"hid_init": (1, H)}
    if cell == "elman":
        return shapes | {"W_in_to_hid": (D, H), "W_hid_to_hid": (H, H), "b": (H,)}
    words = ["resetgate", "updategate", "hidden_update"]
    if cell == "lstm":
        shapes["cell_init"] = (1, H)
        words = ["ingate", "forgetgate", "cell", "outgate"]
    for word in words:
        shapes |= {f"W_in_to_{word}": (D, H), f"W_hid_to_{word}": (H, H), f"b_{word}": (H,)}
        if peepholes and word != "cell":
            shapes[f"W_cell_to_{word}"] = (H,)
    return shapes


@pytest.mark.parametrize(
    ("cell", "peepholes"), [("elman", False), ("gru", False), ("lstm", False), ("lstm", True)], ids=str
)
def test_lasagne(cell, peepholes):
    def loss(arrays, readout, offset):
        logits = lasagne(cell, arrays, peepholes=peepholes) @ readout + offset
        return np.mean(np.log(np.exp(logits).sum(axis=-1)) - (CHOSEN * logits).sum(axis=-1))

    def run(arrays, readout, offset):
        # derivative by derivative, by complex steps (Squire & Trapp 1998)
        gradients = {}
        for name, array in arrays.items():
            gradients[name] = np.empty(array.shape)
            for index in np.ndindex(array.shape):
                moved = array.astype(complex)
                moved[index] += 1e-20j
                gradients[name][index] = loss(arrays | {name: moved}, readout, offset).imag / 1e-20
        return lasagne(cell, arrays, peepholes=peepholes), gradients

    arrays = numbers(lasagne_shapes(cell, peepholes=peepholes))
    spec = check("lasagne", cell, arrays, run)
    assert (spec.peepholes, spec.learn_initial_state) == (peepholes, True)
    back = to_library("lasagne", cell, from_library("lasagne", cell, arrays)[1])
    assert {name: a.tolist() for name, a in back.items()} == {name: a.tolist() for name, a in arrays.items()}


EVERY = [
    *((library, cell) for library in ("torch", "keras", "flax", "nnx", "lasagne") for cell in ("elman", "gru", "lstm")),
    *(("equinox", "gru"), ("equinox", "lstm"), ("nnx_apart", "lstm"), ("keras", "gru_before")),
]


def ours(cell, **options):
    return numbers(RecurrentSpec(n_features=D, n_classes=C, n_hidden=H, cell=cell, **options).shapes())


def theirs(library, cell):
    """Numbers in the shapes of a library's layer."""
    weights = {n: np.zeros(a.shape) for n, a in ours(cell).items()}
    return numbers({n: a.shape for n, a in to_library(library, cell, weights).items()})


@pytest.mark.parametrize(("library", "cell"), EVERY)
def test_recipes_are_the_same_conversion(library, cell):
    make = {"elman": conventions.rnn, "lstm": conventions.lstm}.get(cell, conventions.gru)
    more = {"reset_after": False} if cell == "gru_before" else {}
    place = "*_l0" if library == "torch" else "*"
    arrays = theirs(library, cell)
    weights = from_library(library, cell, arrays)[1]
    recipes = make(**{library: place}, gradaudit="*", **more)
    assert list(recipes) == list(weights)
    assert all(np.array_equal(recipe(arrays), weights[name]) for name, recipe in recipes.items())
    # the rows of one parameter, added up, are no correspondence of entries
    if (library, cell) != ("keras", "gru"):
        found = corresponding(recipes, arrays, weights, name="ours").adjoint(weights)
        expected = gradients_to_library(library, cell, weights)
        assert {n: g.tolist() for n, g in found.items()} == {n: g.tolist() for n, g in expected.items()}
    if "bn" in weights:
        weights["bn"] = np.zeros(H)
    recipes, back = make(gradaudit="*", **{library: place}, **more), to_library(library, cell, weights)
    assert set(recipes) == set(back)
    assert all(np.array_equal(recipe(weights), back[name]) for name, recipe in recipes.items())


def test_recipes_with_all_that_an_lstm_may_have_and_without_a_bias():
    weights = ours("lstm", peepholes=True, learn_initial_state=True)
    recipes = conventions.lstm(gradaudit="*", lasagne="*", peepholes=True, learn_initial_state=True)
    found, expected = {n: r(weights) for n, r in recipes.items()}, to_library("lasagne", "lstm", weights)
    assert {n: a.tolist() for n, a in found.items()} == {n: a.tolist() for n, a in expected.items()}
    arrays = theirs("torch", "gru")
    recipes = conventions.gru(torch="*_l0", gradaudit="*", bias=False)
    del arrays["bias_ih_l0"], arrays["bias_hh_l0"]
    expected = from_library("torch", "gru", arrays)[1]
    assert {n: r(arrays).tolist() for n, r in recipes.items()} == {n: a.tolist() for n, a in expected.items()}
    assert not expected["b"].any()
    with pytest.raises(OptionError, match="the lstm layers of torch have no parameters for: initial, peephole"):
        conventions.lstm(gradaudit="*", torch="*_l0", peepholes=True, learn_initial_state=True)


@pytest.mark.parametrize(
    ("library", "cell", "message"),
    [
        ("theano", "lstm", "unknown library 'theano'.*\n.*torch, keras, flax, nnx, nnx_apart, equinox, lasagne$"),
        ("torch", "rnn", "unknown cell 'rnn'.*\n.*one of lstm, gru, gru_before, elman"),
        ("torch", "gru_before", "torch has no gru_before.*\n.*gru_before is known of keras$"),
        ("equinox", "elman", "equinox has no elman.*\n.*elman is known of torch, keras, flax, nnx, lasagne$"),
        ("gradaudit", "lstm", "unknown library 'gradaudit'"),
    ],
)
def test_what_a_library_does_not_have(library, cell, message):
    for convert in (from_library, to_library, gradients_to_library):
        with pytest.raises(OptionError, match=f"(?s){message}"):
            convert(library, cell, ours("lstm"))


@pytest.mark.parametrize(
    ("library", "cell", "options", "message"),
    [
        ("nnx", "gru", {}, "nnx has no place for bn, which is not 0: .*with bias=True, torch, keras, flax and equinox"),
        ("lasagne", "gru", {"n_layers": 2}, "lasagne has no place for bn_l0, which is not 0"),
        ("torch", "lstm", {"peepholes": True}, "torch has no place for P, .*lasagne has a place"),
        ("keras", "elman", {"learn_initial_state": True}, "keras has no place for h0, .*begin the layer with it"),
        ("flax", "lstm", {"learn_initial_state": True}, "flax has no place for c0, "),
        ("equinox", "lstm", {"bias": False}, "equinox has no place for b, .*bias=True, or set it to 0"),
    ],
)
def test_a_weight_without_a_home(library, cell, options, message):
    bias = options.pop("bias", True)
    weights = ours(cell, **options)
    with pytest.raises(OptionError, match=f"(?s){message}"):
        to_library(library, cell, weights, bias=bias)
    lost = ("bn", "P", "h0", "c0", *(("b",) * (not bias)))
    weights |= {name: 0 * a for name, a in weights.items() if name.split("_l")[0] in lost}
    again = from_library(library, cell, to_library(library, cell, weights, bias=bias))[1]
    assert all(np.array_equal(again.get(name, 0 * a), a) for name, a in weights.items() if name not in "Vc")


def test_stacks_and_directions_of_any_library():
    weights = ours("lstm", n_layers=2)
    arrays = to_library("keras", "lstm", weights)
    assert [n for n in arrays if n.startswith("kernel")] == ["kernel_l0", "kernel_l1"]
    options, again = from_library("keras", "lstm", arrays)
    assert (options["n_layers"], options["n_hidden"], options["n_features"]) == (2, H, D)
    assert all(np.array_equal(again[n], weights[n]) for n in again)
    both = to_library("flax", "gru", ours("gru", bidirectional=True))
    assert {"in.kernel", "in.kernel_reverse"} < set(both)
    for names in (["_l1"], ["_l0", "_l1", "_l0_reverse", "_l1_reverse"], []):
        one = {n.removesuffix("_l0"): a for n, a in theirs("torch", "lstm").items()}
        with pytest.raises(
            OptionError, match=f"(?s)are those of the layers .*{''.join(names[:1])}.*convert each alone"
        ):
            from_library("torch", "lstm", {n + suffix: a for suffix in names for n, a in one.items()})


def without(name):
    return lambda p: {n: a for n, a in p.items() if n != name}


@pytest.mark.parametrize(
    ("library", "cell", "altered", "message"),
    [
        (
            "torch",
            "lstm",
            lambda p: p | {"weight_hr_l0": np.ones((2, H))},
            "has weight_hr .*its parameters are weight_ih, ",
        ),
        ("torch", "gru", without("weight_hh_l0"), "lacks weight_hh "),
        ("flax", "gru", without("hn.bias"), "lacks hn.bias "),
        (
            "keras",
            "lstm",
            lambda p: {f"lstm/{n}": a for n, a in p.items()},
            "has lstm/bias, .*lacks kernel, .* before it nothing",
        ),
        ("keras", "gru", lambda p: p | {"bias": p["bias"][0]}, "bias has shape .12,.*2 axes.*last axis holds 3 equal"),
        ("keras", "gru_before", lambda p: p | {"bias": np.ones((2, 3 * H))}, "bias has shape .2, 12.*1 axes"),
        ("torch", "lstm", lambda p: p | {"weight_ih_l0": np.ones((7, D))}, "weight_ih has shape .7, 2.*4 equal parts"),
        (
            "torch",
            "lstm",
            lambda p: p | {"weight_ih_l0": np.ones((8, D))},
            "has shape .8, 2., of which gate i of lstm gets .2, 2..*.2, 4., with 4 units",
        ),
        ("torch", "elman", lambda p: theirs("torch", "lstm"), "weight_hh has shape .16, 4.*is it another cell"),
        ("lasagne", "lstm", lambda p: p | {"hid_init": np.ones((2, H)), "cell_init": np.ones((1, H))}, "hid_init has"),
    ],
)
def test_what_is_no_layer(library, cell, altered, message):
    with pytest.raises(ModelContractError, match=f"(?s){message}"):
        from_library(library, cell, altered(theirs(library, cell)))
