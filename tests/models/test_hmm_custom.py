"""`CustomHMM` and subclasses of `BaseHMM`: densities of one's own, neural ones included."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from models.hmm_cases import LENGTHS, N, frames, model, quiet, start_from
from torch import nn

import evidens
from evidens import ops
from evidens.hmm import BaseHMM, CustomHMM

quiet()
pytestmark = pytest.mark.usefixtures("one_thread")


class Normals(nn.Module):
    """Unit normals (N, 2) with means to learn."""

    def __init__(self, means):
        super().__init__()
        self.means = nn.Parameter(torch.as_tensor(means, dtype=torch.float64))

    def forward(self, x):
        distance = (x[:, None] - self.means) ** 2
        return -0.5 * distance.sum(2) - np.log(2 * np.pi)


MEANS = [[0.0, 1.0], [4.0, 3.0], [6.0, 8.0]]


def neural(**params):
    params = {"n_iter": 6, "random_state": 0, "tol": -np.inf} | params
    return CustomHMM(3, Normals(MEANS), **params)


def test_m_step_of_ones_own_is_the_built_in_family():
    X = frames("Gaussian")
    reference = model("Gaussian", params="stm", init_params="st")
    reference.means_, reference.covars_ = np.array(MEANS), np.ones((3, 2))
    reference.fit(X, LENGTHS)
    means = np.array(MEANS)

    def m_step(X, posteriors):
        means[:] = posteriors.T @ X / posteriors.sum(0)[:, None]

    def density(X):
        return -0.5 * ((X[:, None] - means) ** 2).sum(2) - np.log(2 * np.pi)

    m = CustomHMM(3, density, m_step=m_step, n_iter=6, random_state=0, tol=-np.inf)
    m.fit(X, LENGTHS)
    np.testing.assert_allclose(means, reference.means_, rtol=1e-10)
    np.testing.assert_allclose(m.transmat_, reference.transmat_, rtol=1e-10)
    np.testing.assert_allclose(m.monitor_.history, reference.monitor_.history, rtol=1e-12)
    with pytest.raises(ValueError, match="m_step needs all frames at once"):
        m.fit([X[:65], X[65:]], LENGTHS)


def test_the_gradient_is_autograds():
    X = frames("Gaussian")
    m = neural(n_iter=1, learning_rate=0.1, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    m.fit(X, LENGTHS)
    # One step of gradient descent on the mean of -log p, by hand and in logs.
    start, a = neural(n_iter=0).fit(X, LENGTHS), Normals(MEANS)
    with torch.enable_grad():
        log_obs, first, total = a(torch.from_numpy(X)), 0, 0.0
        log_a = torch.from_numpy(start.transmat_).log()
        for length in LENGTHS:
            alpha = torch.from_numpy(start.startprob_).log() + log_obs[first]
            for t in range(first + 1, first + length):
                alpha = torch.logsumexp(alpha[:, None] + log_a, 0) + log_obs[t]
            total = total + torch.logsumexp(alpha, 0)
            first += length
        (-total / N).backward()
    np.testing.assert_allclose(m.monitor_.history[0], total.item(), rtol=1e-12)
    expected = a.means.detach() - a.means.grad
    np.testing.assert_allclose(m.emission_.means.detach(), expected, rtol=1e-9)


def test_a_module_learns_what_em_learns():
    X = frames("Gaussian")
    m = neural(n_iter=600, learning_rate=0.05).fit(X, LENGTHS)
    assert m.monitor_.history[-1] > m.monitor_.history[0] + 20
    # Where it stops, EM has nothing to add.
    em = model("Gaussian", params="stm", init_params="", n_iter=20)
    em.startprob_, em.transmat_ = m.startprob_, m.transmat_
    em.means_, em.covars_ = m.emission_.means.detach().numpy(), np.ones((3, 2))
    assert em.fit(X, LENGTHS).score(X, LENGTHS) - m.score(X, LENGTHS) < 1e-3
    np.testing.assert_allclose(m.emission_.means.detach(), em.means_, atol=0.01)
    # The module that was given is a parameter and stays as it is.
    np.testing.assert_array_equal(m.emission.means.detach(), MEANS)


def test_frozen_emissions_learn_the_rest_alone():
    X = frames("Gaussian")
    m = neural(params="st").fit(X, LENGTHS)
    np.testing.assert_array_equal(m.emission_.means.detach(), MEANS)
    call = CustomHMM(
        3,
        lambda X: Normals(MEANS)(torch.from_numpy(X)).detach().numpy(),
        n_iter=6,
        random_state=0,
        tol=-np.inf,
    ).fit(X, LENGTHS)
    np.testing.assert_allclose(m.transmat_, call.transmat_, rtol=1e-10)
    np.testing.assert_allclose(m.startprob_, call.startprob_, rtol=1e-10)
    np.testing.assert_allclose(m.monitor_.history, call.monitor_.history, rtol=1e-12)
    assert np.diff(m.monitor_.history).min() > -1e-9


def test_weights_labels_and_missing_frames_of_a_module():
    X = frames("Gaussian")
    parts = np.split(X, np.cumsum(LENGTHS)[:-1])
    twice = np.concatenate([parts[0], parts[0], parts[1]])
    one = neural().fit(X[:65], [40, 25], sample_weight=[2, 1])
    two = neural().fit(twice, [40, 40, 25])
    np.testing.assert_allclose(one.emission_.means.detach(), two.emission_.means.detach())
    np.testing.assert_allclose(one.transmat_, two.transmat_)
    labels = np.random.default_rng(0).integers(0, 3, N)
    m = neural(n_iter=1).fit(X, LENGTHS, labels=labels)
    first = np.cumsum([0, *LENGTHS])[:-1]
    np.testing.assert_allclose(m.startprob_, np.bincount(labels[first], minlength=3) / 4)
    holes = X.copy()
    holes[7:12] = np.nan
    m = neural().fit(holes, LENGTHS)
    assert m.emission_.means.isfinite().all()
    assert np.isfinite(m.score(holes, LENGTHS))
    # A module learns from batches, too.
    before = m.score(X, LENGTHS)
    for _ in range(20):
        for i, length in enumerate(LENGTHS):
            m.partial_fit(parts[i], [length])
    assert m.score(X, LENGTHS) > before
    assert [type(g) for g in m.emission_.parameters()] == [nn.Parameter]


def test_gradients_reach_the_user():
    X = torch.from_numpy(frames("Gaussian"))
    m = neural(n_iter=2).fit(X, LENGTHS)
    loss = -m.log_prob(X.clone().requires_grad_(), LENGTHS).sum()
    loss.backward()
    assert m.emission_.means.grad.isfinite().all()
    assert m.emission_.means.grad.abs().max() > 0


def test_save_and_load_of_a_module(tmp_path):
    X = frames("Gaussian")
    m = neural().fit(X, LENGTHS)
    m.save(tmp_path / "m")
    again = CustomHMM.load(tmp_path / "m", emission=Normals(np.zeros((3, 2))))
    assert (again.log_prob(X, LENGTHS) == m.log_prob(X, LENGTHS)).all()
    again.partial_fit(X, LENGTHS)


def test_one_process_of_a_group_is_one_process(tmp_path):
    import torch.distributed as dist

    X = frames("Gaussian")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        shared = neural().fit(X, LENGTHS, process_group=True)
    finally:
        dist.destroy_process_group()
    alone = neural().fit(X, LENGTHS)
    assert (shared.emission_.means == alone.emission_.means).all()


def test_what_is_wrong_with_an_emission():
    X = frames("Gaussian")
    with pytest.raises(TypeError, match=r"emission: expected a callable or a torch.nn.Module"):
        CustomHMM(3).fit(X)
    with pytest.raises(TypeError, match=r"emission: expected an array or a tensor .* got list"):
        CustomHMM(3, lambda X: (-X).tolist()).fit(X)
    with pytest.raises(ValueError, match=re.escape("shape (N, K) = (100, 3), got (100, 2)")):
        CustomHMM(3, lambda X: X).fit(X)
    with pytest.raises(ValueError, match="m_step is for callables"):
        CustomHMM(3, Normals(MEANS), m_step=lambda X, r: None).fit(X)
    half = np.where(np.arange(2) == 0, np.nan, X)
    with pytest.raises(ValueError, match="below infinity, got nan for frame 0 of a block under"):
        neural().fit(X).score(half)
    with pytest.raises(NotImplementedError, match="cannot impute"):
        neural().fit(X).impute(np.full((2, 2), np.nan))
    with pytest.raises(NotImplementedError, match="how many parameters"):
        neural().fit(X).aic(X)


@pytest.mark.parametrize("implementation", ["log", "scaling"])
def test_a_subclass_as_hmmlearn_has_it(implementation):
    hmmlearn = pytest.importorskip("hmmlearn.base")
    log_obs = np.log(np.random.default_rng(0).dirichlet(np.ones(3), N))

    def make(base):
        class Own(base):
            def _compute_log_likelihood(self, X):
                return log_obs[np.asarray(X)[:, 0].astype(int)]

            def _compute_likelihood(self, X):
                return np.exp(self._compute_log_likelihood(X))

            def _generate_sample_from_state(self, state, random_state=None):
                return [state, 0]

            def _get_n_fit_scalars_per_param(self):
                return {"s": 2, "t": 6}

        own = Own(3, n_iter=4, tol=0, params="st", init_params="", implementation=implementation)
        own.startprob_, own.transmat_ = np.full(3, 1 / 3), np.full((3, 3), 1 / 3) + np.eye(3) / 9
        own.transmat_ /= own.transmat_.sum(1, keepdims=True)
        return own.fit(np.arange(N)[:, None], LENGTHS)

    ours, theirs = make(BaseHMM), make(hmmlearn.BaseHMM)
    np.testing.assert_allclose(ours.transmat_, theirs.transmat_, rtol=1e-9)
    np.testing.assert_allclose(ours.startprob_, theirs.startprob_, rtol=1e-9)
    np.testing.assert_allclose(ours.monitor_.history, theirs.monitor_.history, rtol=1e-12)
    X = np.arange(20)[:, None]
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    for a, b in zip(ours.sample(9, random_state=1), theirs.sample(9, random_state=1)):
        np.testing.assert_array_equal(a, b)


def test_a_training_loop_of_ones_own():
    X = torch.from_numpy(frames("Gaussian"))
    module, logits = Normals(MEANS), torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([*module.parameters(), logits], lr=0.05)
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        initial = torch.full((3,), 1 / 3, dtype=torch.float64)
        log_prob = ops.hmm_log_likelihood(module(X), initial, logits.softmax(1), offsets=offsets)
        loss = -log_prob.sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 5


def test_a_start_from_another_model():
    X = frames("Custom")
    first = model("Custom").fit(X, LENGTHS)
    on = start_from(model("Custom", n_iter=1), first, "Custom").fit(X, LENGTHS)
    assert on.monitor_.history[0] == pytest.approx(first.score(X, LENGTHS))
    assert isinstance(on, evidens.CustomHMM)
