"""How flows learn: held-out rows decide, weights count, interruptions lose nothing."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
from models.flow_cases import CLASSES, QUICK, SMALL, moons, shaken

from evidens import Flow, NeuralSplineFlow, RealNVP
from evidens.models._density_input import training_rows
from evidens.models._training import Plan, train
from evidens.nn import MLP, ActNorm, AffineCoupling, Chain, Permutation

X, _ = moons(600)
HELD_OUT = moons(300, 1)[0]


def small(**options):
    return RealNVP(2, **SMALL | options)


def weights(flow):
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


def loss(flow, *data):
    """The loss of all rows together."""
    rows = training_rows(flow, *data, *[None] * (4 - len(data)))
    return flow._loss(rows)(torch.arange(len(rows)))


# --- which weights are kept -----------------------------------------------------------------------


def test_the_weights_that_validate_best_are_kept():
    flow = small().fit(X[:60], validation_data=HELD_OUT, epochs=60, lr=2e-2, patience=8, **QUICK)
    history = flow.history_
    assert flow.best_epoch_ == 1 + int(np.argmax(history["validation"]))
    assert flow.score(HELD_OUT) == pytest.approx(max(history["validation"]), abs=1e-5)
    assert flow.converged_
    assert flow.n_iter_ == flow.best_epoch_ + 8 == len(history["train"]) < 60
    # Sixty rows are learned by heart.
    assert history["train"][-1] > history["validation"][-1] + 0.5


@pytest.mark.filterwarnings("ignore:training stopped in epoch")
def test_training_that_only_harms_keeps_the_start():
    start = small().fit(X, validation_data=HELD_OUT, epochs=0, **QUICK)
    flow = small().fit(X, validation_data=HELD_OUT, epochs=3, lr=30.0, clip=None, **QUICK)
    assert flow.best_epoch_ == 0
    assert flow.score(HELD_OUT) == pytest.approx(start.score(HELD_OUT), abs=1e-6)
    assert not flow.converged_


def test_without_held_out_rows_all_are_learned_and_the_last_weights_kept():
    flow = small().fit(X, validation_fraction=0, epochs=4, **QUICK)
    assert flow.history_["validation"] == []
    assert flow.best_epoch_ == flow.n_iter_ == 4
    np.testing.assert_allclose(flow.standard.location, X.mean(0))
    np.testing.assert_allclose(flow.standard.scale, X.std(0))


def test_learning_rates():
    rates = small().fit(X, epochs=4, lr=1e-2, batch_size=60, **QUICK).history_["learning_rate"]
    assert rates[0] > rates[1] > rates[2] > rates[3] > 0
    options = {"schedule": "constant", "epochs": 2, "lr": 1e-2}
    assert small().fit(X, **options, **QUICK).history_["learning_rate"] == [1e-2, 1e-2]


@pytest.mark.parametrize(
    "schedule, expected",
    [("constant", [1.0] * 9), ("plateau", [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25])],
)
def test_what_follows_from_the_validation(schedule, expected):
    """Scripted validations: the start, then better, a tie, ..., better, and never again."""
    module = torch.nn.Linear(1, 1, bias=False)
    seen, script = [], iter([0.0, 1.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 3.0, 3.0])

    def validate():
        seen.append(module.weight.item())
        return next(script)

    plan = Plan(epochs=9, lr=1.0, schedule=schedule, patience=8, clip=None)
    record = train(
        module,
        lambda index: module.weight.sum(),
        10,
        plan=plan,
        generator=torch.Generator(),
        validate=validate,
    )
    assert record.learning_rate == expected
    assert record.best_epoch == 8
    assert not record.stopped_early
    assert module.weight.item() == seen[8] != seen[9]


def test_batches_are_of_one_size():
    sizes = [len(b) for b in Plan(batch_size=100).batches(torch.arange(301))]
    assert sizes == [76, 75, 75, 75]
    assert [len(b) for b in Plan(batch_size=100).batches(torch.arange(100))] == [100]


# --- what fit starts from -------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_a_seed_gives_the_same_flow(cls):
    flows = [cls(2, dropout=0.1, **SMALL).fit(X, epochs=2, **QUICK) for _ in range(2)]
    assert torch.equal(weights(flows[0]), weights(flows[1]))
    again = flows[0].fit(X, epochs=2, **QUICK)
    assert torch.equal(weights(again), weights(flows[1]))
    other = flows[0].fit(X, epochs=2, random_state=1, verbose=0)
    assert not torch.equal(weights(other), weights(flows[1]))
    torch.manual_seed(5)
    first = weights(flows[0].fit(X, epochs=1, verbose=0)).clone()
    torch.manual_seed(5)
    assert torch.equal(weights(flows[0].fit(X, epochs=1, verbose=0)), first)


def test_warm_start_goes_on():
    flow = small().fit(X, epochs=5, **QUICK)
    location, score = flow.standard.location.clone(), flow.score(X)
    flow.fit(X + 0.01, epochs=0, warm_start=True, **QUICK)
    assert flow.score(X) == score
    assert torch.equal(flow.standard.location, location)
    longer = flow.fit(X, epochs=20, warm_start=True, **QUICK)
    assert longer is flow
    assert longer.score(X) > score


def test_exchanged_modules_are_not_thrown_away_silently():
    flow = small()
    flow.layers.layers[0] = AffineCoupling(2, MLP(1, 2, (7,)))
    with pytest.raises(ValueError, match="modules have been exchanged; pass warm_start=True"):
        flow.fit(X, epochs=1, **QUICK)
    assert flow.fit(X, epochs=1, warm_start=True, **QUICK).n_iter_ == 1


def test_frozen_parameters_stay():
    flow = shaken(small())
    for p in flow.layers[0].parameters():
        p.requires_grad_(False)
    before = [p.clone() for p in flow.layers[0].parameters()]
    flow.fit(X, epochs=2, warm_start=True, **QUICK)
    assert all(torch.equal(a, b) for a, b in zip(before, flow.layers[0].parameters()))


def test_device_and_dtype_stay():
    flow = small().double().fit(X, epochs=1, **QUICK)
    assert flow.dtype == torch.float64
    assert flow.device.type == "cpu"


# --- weights of rows ------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_weight_two_is_the_row_twice(cls):
    flow = shaken(cls(2, **SMALL)).double()
    count = np.random.default_rng(0).integers(0, 3, size=len(X))
    repeated = np.repeat(X, count, axis=0)
    a, b = loss(flow, X, None, None, count), loss(flow, repeated)
    assert a.item() == pytest.approx(b.item(), rel=1e-12)
    score = flow.score(X, sample_weight=count)
    assert score == pytest.approx(flow.score(repeated), rel=1e-12) == pytest.approx(-a.item())
    for x, w in ((X, count), (repeated, None)):
        flow.fit(x, sample_weight=w, epochs=0, validation_fraction=0, **QUICK)
        np.testing.assert_allclose(flow.standard.location, repeated.mean(0), rtol=1e-12)
        np.testing.assert_allclose(flow.standard.scale, repeated.std(0), rtol=1e-12)


def test_rows_of_no_weight_may_hold_anything():
    bad = np.concatenate([X, [[np.nan, np.inf]]])
    weight = np.r_[np.ones(len(X)), 0]
    flow = small().fit(bad, sample_weight=weight, epochs=1, **QUICK)
    assert torch.equal(weights(flow), weights(small().fit(X, epochs=1, **QUICK)))
    with pytest.raises(ValueError, match="sample_weight is zero everywhere"):
        small().fit(X, sample_weight=np.zeros(len(X)))
    with pytest.raises(ValueError, match="expected non-negative finite weights, got -1"):
        small().fit(X, sample_weight=np.full(len(X), -1.0))


def test_weights_move_the_fit():
    both = np.concatenate([X, X + 10])
    flow = small().fit(both, sample_weight=np.repeat([0.01, 1.0], len(X)), epochs=10, **QUICK)
    assert flow.sample(500, random_state=0).mean() > 9


def test_validation_rows_have_weights_too():
    data = np.concatenate([HELD_OUT, HELD_OUT + 50])
    weight = np.repeat([1.0, 0.0], len(HELD_OUT))
    a = small().fit(X, validation_data=(data, None, None, weight), epochs=2, **QUICK)
    b = small().fit(X, validation_data=HELD_OUT, epochs=2, **QUICK)
    np.testing.assert_allclose(a.history_["validation"], b.history_["validation"], rtol=1e-6)


# --- chunks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_chunks(cls):
    flow, start = cls(2, **SMALL), None
    for i in range(60):
        flow.partial_fit(moons(200, i)[0], lr=5e-3, random_state=i)
        start = flow.score(HELD_OUT) if i == 0 else start
    assert flow.n_iter_ == 60
    assert flow.score(HELD_OUT) > start + 0.3
    assert isinstance(flow.sample(2), np.ndarray)


def test_adam_remembers_from_chunk_to_chunk():
    flow = small().partial_fit(X, random_state=0)
    optimizer = flow._optimizer
    flow.partial_fit(X, random_state=0)
    assert flow._optimizer is optimizer
    assert next(iter(optimizer.state.values()))["step"] == 6


# --- what goes wrong ------------------------------------------------------------------------------


class Interrupting(torch.nn.Module):
    """A conditioner that gets Ctrl-C at some call."""

    def __init__(self, at, what=KeyboardInterrupt):
        super().__init__()
        self.net, self.left, self.what = MLP(1, 2, (8,)), at, what

    def forward(self, x):
        self.left -= 1
        if self.left == 0:
            raise self.what
        return self.net(x)


def test_ctrl_c_keeps_what_was_learned():
    flow = Flow((2,), Chain(AffineCoupling(2, Interrupting(50))))
    with pytest.warns(RuntimeWarning, match=r"fit was interrupted in epoch \d+; the weights of"):
        flow.fit(X, epochs=1000, **QUICK)
    assert 0 < flow.best_epoch_ <= flow.n_iter_ < 50
    assert not flow.converged_
    assert flow.score(X) > Flow((2,), Chain()).fit(X, **QUICK | {"epochs": 0}).score(X)
    assert flow.training


def test_other_exceptions_pass():
    flow = Flow((2,), Chain(AffineCoupling(2, Interrupting(20, ZeroDivisionError))))
    with pytest.raises(ZeroDivisionError):
        flow.fit(X, epochs=1000, **QUICK)
    assert flow.training


class Overflowing(torch.nn.Module):
    """A conditioner with a gradient, or numbers, that are not finite, now and then."""

    def __init__(self, every, gradient=True):
        super().__init__()
        self.net, self.every, self.calls = MLP(1, 2, (8,)), every, 0
        self.gradient = gradient

    def forward(self, x):
        self.calls += self.training
        y = self.net(x)
        if self.training and self.calls % self.every == 0:
            if not self.gradient:
                return y * float("inf")
            y.register_hook(lambda g: g * float("inf"))
        return y


def test_steps_without_a_finite_gradient_are_left_out():
    flow = Flow((2,), Chain(AffineCoupling(2, Overflowing(3))))
    with pytest.warns(RuntimeWarning, match="4 of 12 steps had a gradient that is not finite"):
        flow.fit(X, epochs=4, **QUICK)
    assert weights(flow).isfinite().all()
    assert flow.best_epoch_ > 0


def test_training_that_cannot_make_a_step_ends():
    flow = Flow((2,), Chain(AffineCoupling(2, Overflowing(1))))
    with pytest.warns(RuntimeWarning, match="3 of 3 steps"):
        flow.fit(X, epochs=100, **QUICK)
    assert flow.n_iter_ == 1
    assert flow.best_epoch_ == 0
    assert np.isfinite(flow.score(X))


@pytest.mark.parametrize("fraction", [0.1, 0.0])
def test_a_loss_that_is_not_finite_ends_training(fraction):
    """The weights are those that were good, and the batch is named."""
    n = len(X) - round(len(X) * fraction)
    batches = -(-n // 64)
    at = 2 * batches + 2  # in the third epoch
    flow = Flow((2,), Chain(AffineCoupling(2, Overflowing(at, gradient=False))))
    words = (
        rf"stopped in epoch 3 at batch 2 of {batches}, .*not finite; the weights of epoch \d are"
    )
    options = {**QUICK, "epochs": 50, "batch_size": 64, "validation_fraction": fraction}
    with pytest.warns(RuntimeWarning, match=words) as caught:
        flow.fit(X, **options)
    assert flow.n_iter_ == 2
    assert len(flow.history_["train"]) == 2
    assert weights(flow).isfinite().all()
    assert np.isfinite(flow.score(X))
    rows = str(caught[0].message).split("rows of X: ")[1].split(", ...")[0]
    assert all(0 <= int(row) < len(X) for row in rows.split(", "))
    if fraction == 0:
        assert flow.best_epoch_ == 2
        calm = Flow((2,), Chain(AffineCoupling(2, Overflowing(10**9))))
        calm.layers.load_state_dict(flow.layers.state_dict())
        assert calm.standard.location.isfinite().all()


def test_the_row_behind_a_loss_that_is_not_finite_is_named():
    """Numbers are those of X: rows without weight come before it."""
    data = X[:40].astype(np.float64).copy()
    flow = Flow((2,), Chain(AffineCoupling(2, MLP(1, 2, (8,)))), standardize="none")
    data[25] = 1e200
    weight = np.ones(40)
    weight[:5] = 0
    with pytest.warns(RuntimeWarning, match=r"stopped in epoch 1 .*weights of epoch 0") as caught:
        flow.fit(data, sample_weight=weight, epochs=3, batch_size=1, validation_fraction=0, **QUICK)
    assert "1 rows of X: 25." in str(caught[0].message)


def test_a_chunk_whose_loss_is_not_finite_changes_nothing():
    flow = Flow((2,), Chain(AffineCoupling(2, Overflowing(6, gradient=False))))
    flow.partial_fit(X[:128], batch_size=32, random_state=0)
    before = weights(flow).clone()
    with pytest.warns(RuntimeWarning, match="stopped in epoch 1 at batch 2 of 4"):
        flow.partial_fit(X[:128], batch_size=32, random_state=1)
    assert torch.equal(weights(flow), before)
    assert flow.n_iter_ == 1


def test_a_column_without_density():
    with pytest.raises(ValueError, match="feature 1 is constant, which has no density"):
        small().fit(np.c_[X[:, 0], np.full(len(X), 0.1)], **QUICK)


# --- what is shown --------------------------------------------------------------------------------


def test_verbose(capsys, monkeypatch):
    small().fit(X, epochs=2, random_state=0)
    assert capsys.readouterr() == ("", "")  # no terminal, no bar
    small().fit(X, epochs=2, random_state=0, verbose=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:8] for line in lines] == ["epoch 1:", "epoch 2:"]
    assert "train" in lines[0]
    assert "validation" in lines[0]

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    small().fit(X, epochs=2, random_state=0)
    assert "RealNVP" in sys.stderr.getvalue()
    monkeypatch.setattr(sys, "stderr", Terminal())
    small().fit(X, epochs=2, **QUICK)
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": -1}, "epochs: expected an integer of at least 0, got -1"),
        ({"epochs": 2.5}, "epochs: expected an integer"),
        ({"batch_size": 0}, "batch_size: expected an integer of at least 1"),
        ({"lr": 0}, "lr: expected a positive number, got 0"),
        ({"lr": float("nan")}, "lr: expected a positive number"),
        ({"clip": -1.0}, "clip: expected a positive number"),
        ({"weight_decay": -1.0}, "weight_decay: expected a positive number"),
        ({"patience": 0}, "patience: expected an integer of at least 1"),
        ({"schedule": "linear"}, "schedule: expected 'cosine', 'plateau' or 'constant'"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \[0, 1\), got 1.0"),
        ({"validation_data": (X, None, None, None, None)}, "of up to four, got 5"),
        ({"validation_data": X[:, :1]}, r"validation_data must have shape \(N, 2\), got"),
        ({"validation_data": X * np.nan}, "validation_data must be finite"),
    ],
)
def test_options_that_are_refused(options, message):
    flow = small()
    with pytest.raises(ValueError, match=message):
        flow.fit(X, **options)
    assert flow.fitted_to_tensors_ is None


def test_weight_decay_draws_to_the_identity():
    sizes = []
    for weight_decay in (0.0, 5.0):
        flow = NeuralSplineFlow(2, layers=1, hidden=(16,))
        flow.fit(X, epochs=30, weight_decay=weight_decay, validation_fraction=0, **QUICK)
        sizes.append(flow.layers[-1].conditioner.layers[-1].weight.detach().norm())
    assert sizes[1] < 0.9 * sizes[0]


def test_layers_without_parameters():
    flow = Flow((2,), Chain(Permutation(2))).fit(X, **QUICK)
    assert flow.n_iter_ == 0
    assert flow.score(X) > -5


def test_actnorm_starts_from_the_data_and_no_query_changes_it():
    flow = Flow((2,), Chain(ActNorm(2), AffineCoupling(2, MLP(1, 2))), standardize="none")
    flow.fit(X * 100, epochs=0, validation_fraction=0, **QUICK)
    gaussian = small().fit(X * 100, epochs=0, validation_fraction=0, **QUICK)
    assert flow.score(X * 100) == pytest.approx(gaussian.score(X * 100), abs=1e-5)
    before = weights(flow).clone()
    flow.train().log_prob(torch.from_numpy(X))
    assert torch.equal(weights(flow), before)
