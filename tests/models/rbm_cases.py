"""Small machines with given parameters, and all that can be said of them by counting states."""

from __future__ import annotations

import itertools

import numpy as np

from evidens import BernoulliRBM, CategoricalRBM, GaussianRBM


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def given(model, weight, b, c, *, classes=None, log_variance=None):
    """A model with these parameters, as `fit` would leave it.

    Args:
        model: not fitted.
        weight, b, c: (J, V), (V,), (J,); (J, D, L) and (D, L) of levels.
        classes: (J, C) weights and (C,) biases of a class.
        log_variance: (V,) of a Gaussian.
    """
    weight, b, c = (np.array(a, dtype=np.float64) for a in (weight, b, c))
    model.components_, model.intercept_visible_, model.intercept_hidden_ = weight, b, c
    model.n_features_in_ = weight.shape[1]
    units = b.size
    if classes is not None:
        model.class_components_, model.intercept_class_ = (np.asarray(a) for a in classes)
        model.classes_ = np.arange(len(model.intercept_class_))
        units += len(model.classes_)
    if log_variance is not None:
        model.log_variance_ = np.asarray(log_variance)
        model.mean_, model.scale_ = np.zeros(units), np.ones(units)
    model.h_samples_ = np.full((5, len(c)), 0.0 if model.hidden == "bernoulli" else -1.0)
    model.visible_means_ = np.full(units, 0.5)
    model.hidden_means_ = np.full(len(c), 0.5)
    model.stream_ = np.array([7, 0])
    return model


def bernoulli(v=5, j=3, classes=0, seed=0, scale=1.0, **kinds):
    """A `BernoulliRBM` with random parameters."""
    rng = np.random.default_rng(seed)
    label = (scale * rng.normal(size=(j, classes)), rng.normal(size=classes)) if classes else None
    weight = scale * rng.normal(size=(j, v))
    return given(
        BernoulliRBM(j, random_state=0, **kinds),
        weight,
        rng.normal(size=v),
        rng.normal(size=j),
        classes=label,
    )


def gaussian(v=2, j=3, seed=0):
    """A `GaussianRBM` with random parameters."""
    rng = np.random.default_rng(seed)
    return given(
        GaussianRBM(j, random_state=0),
        rng.normal(size=(j, v)),
        rng.normal(size=v),
        rng.normal(size=j),
        log_variance=0.5 * rng.normal(size=v),
    )


def categorical(d=3, count=3, j=2, seed=0):
    """A `CategoricalRBM` of levels 1 .. count with random parameters."""
    rng = np.random.default_rng(seed)
    model = given(
        CategoricalRBM(j, random_state=0),
        rng.normal(size=(j, d, count)),
        rng.normal(size=(d, count)),
        rng.normal(size=j),
    )
    model.levels_ = np.arange(1.0, count + 1)
    return model


def states(kind, units):
    """All states (2^n, n) of two-valued units."""
    low = 0.0 if kind == "bernoulli" else -1.0
    return np.array(list(itertools.product([low, 1.0], repeat=units))).reshape(-1, units)


class Joint:
    """All joint states of a two-valued machine: probabilities p (visible, class, hidden)."""

    def __init__(self, model):
        w, b, c = model.components_, model.intercept_visible_, model.intercept_hidden_
        self.v, self.h = states(model.visible, len(b)), states(model.hidden, len(c))
        energy = -(self.v @ b)[:, None] - self.h @ c - self.v @ w.T @ self.h.T
        label = np.zeros((1, len(self.h)))
        if hasattr(model, "classes_"):
            label = (self.h @ model.class_components_ + model.intercept_class_).T
        log_p = -energy[:, None] + label
        self.log_z = np.logaddexp.reduce(log_p.ravel())
        self.p = np.exp(log_p - self.log_z)

    @property
    def visible(self):
        """p(v), (2^V,)."""
        return self.p.sum((1, 2))
