"""Digits as sequences: a hidden Markov model that reads an image row by row, for the tour."""

from __future__ import annotations

from typing import Any

import numpy as np

from evidens._tour_measure import Array, Family

FRAMES = 8  # rows of an image, of 8 pixels each
PRIOR = 1.1  # a little more than 1: no transition becomes impossible
RIDGE = 1.5  # added to the sum of squares of a state


def frames(images: Array) -> tuple[Array, Array]:
    """Images (N, 64) as the frames (8 N, 8) of N sequences, and their lengths (N,)."""
    return images.reshape(-1, images.shape[1] // FRAMES), np.full(len(images), FRAMES)


class RowByRow:
    """A Gaussian HMM behind the vocabulary of images: (N, 64) in, (N,) or (N, 64) out.

    Args:
        model: ours or hmmlearn's, not fitted.
        start: attributes that every `fit` starts from.
    """

    def __init__(self, model: Any, start: dict[str, Array]) -> None:
        self.model = model
        self.start = start

    def fit(self, images: Array) -> RowByRow:
        for name, value in self.start.items():
            setattr(self.model, name, value.copy())
        self.model.fit(*frames(images))
        return self

    @property
    def n_iter_(self) -> int:
        return int(self.model.monitor_.iter)

    def score(self, images: Array) -> float:
        """Mean log p of an image, nats."""
        return self.model.score(*frames(images)) / len(images)

    def log_prob(self, images: Array) -> Array:
        """Log p of each image, nats."""
        return np.asarray(self.model.log_prob(*frames(images)))

    def score_samples(self, images: Array) -> Array:
        """The same by ``score`` alone, which is what hmmlearn has."""
        return np.array([self.model.score(image.reshape(FRAMES, -1)) for image in images])

    def sample(self, n: int) -> Array:
        random_state = np.random.RandomState(0)
        drawn = (self.model.sample(FRAMES, random_state)[0] for _ in range(n))
        return np.array([image.ravel() for image in drawn])

    def impute(self, images: Array) -> Array:
        """Images with the pixels that are NaN filled in."""
        return np.asarray(self.model.impute(*frames(images))).reshape(images.shape)

    def on_best_path(self, images: Array) -> Array:
        """Each row replaced by the mean of its state on the most probable path."""
        return np.asarray(self.model.means_[self.model.predict(*frames(images))]).reshape(
            images.shape
        )


def start_of(images: Array, per_row: int) -> dict[str, Array]:
    """k-means for each of the 8 rows, and the transitions between the clusters."""
    from sklearn.cluster import KMeans

    rows = images.reshape(len(images), FRAMES, -1)
    k, d = per_row * FRAMES, rows.shape[2]
    states = np.empty(rows.shape[:2], dtype=int)
    means, covars = [], []
    for t in range(FRAMES):
        cluster = KMeans(per_row, n_init=1, random_state=0).fit(rows[:, t])
        states[:, t] = cluster.labels_ + t * per_row
        means.append(cluster.cluster_centers_)
        covars += [rows[cluster.labels_ == i, t].var(0) for i in range(per_row)]
    first = np.bincount(states[:, 0], minlength=k) + PRIOR - 1
    steps = np.full((k, k), PRIOR - 1)
    np.add.at(steps, (states[:, :-1].ravel(), states[:, 1:].ravel()), 1)
    return {
        "startprob_": first / first.sum(),
        "transmat_": steps / steps.sum(1, keepdims=True),
        "means_": np.concatenate(means),
        "covars_": np.reshape(covars, (k, d)) + RIDGE * k / (FRAMES * len(images)),
    }


def hidden_markov(per_row: int, n_iter: int) -> Family:
    """Our Gaussian HMM and, where it is installed, that of hmmlearn, from the same start."""
    k = per_row * FRAMES

    def build(images: Array) -> tuple[Any, Any]:
        from evidens.hmm import GaussianHMM

        arguments: dict[str, Any] = {
            "n_components": k,
            "covariance_type": "diag",
            "startprob_prior": PRIOR,
            "transmat_prior": PRIOR,
            "covars_prior": RIDGE,
            "n_iter": n_iter,
            "init_params": "",
            # The faster of hmmlearn's two; here it makes no difference.
            "implementation": "scaling",
        }
        start = start_of(images, per_row)
        ours = RowByRow(GaussianHMM(**arguments), start)
        try:
            from hmmlearn.hmm import GaussianHMM as Incumbent
        except ImportError:
            return ours, None
        return ours, RowByRow(Incumbent(**arguments), start)

    setting = f"rows, diag, K={k}"
    return Family("GaussianHMM", setting, "hmmlearn.hmm.GaussianHMM", build)
