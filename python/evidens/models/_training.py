"""The loop that trains a `torch.nn.Module`: batches, validation, best weights, Ctrl-C."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

# The learning rate of "plateau" falls to this share of itself.
PLATEAU_FACTOR = 0.5


@dataclass
class Plan:
    """How to train: what `fit` was asked for.

    Raises:
        ValueError: a value out of its range.
    """

    epochs: int = 100
    batch_size: int = 256
    lr: float = 2e-3
    schedule: str = "cosine"
    patience: int | None = 20
    clip: float | None = 5.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("batch_size", 1), ("patience", 1)):
            value = getattr(self, name)
            if name == "patience" and value is None:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
        for name in ("lr", "clip", "weight_decay"):
            value = getattr(self, name)
            if name == "clip" and value is None:
                continue
            number = float(value) if isinstance(value, Real) else math.nan
            if not 0 <= number < math.inf or (number == 0 and name != "weight_decay"):
                raise ValueError(f"{name}: expected a positive number, got {value!r}")
        if self.schedule not in ("cosine", "plateau", "constant"):
            raise ValueError(
                f"schedule: expected 'cosine', 'plateau' or 'constant', got {self.schedule!r}"
            )

    def rate(self, epochs: float) -> float:
        """The learning rate after so many epochs; a plateau lowers it besides."""
        if self.schedule != "cosine":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * epochs / self.epochs))

    def batches(self, order: Tensor) -> list[Tensor]:
        """Rows in batches of at most ``batch_size``, all of one size up to 1."""
        return list(order.tensor_split(-(-len(order) // self.batch_size)))


@dataclass
class Record:
    """What happened in training."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    best_epoch: int = 0
    best: float = -math.inf
    steps: int = 0
    skipped: int = 0
    stopped_early: bool = False
    interrupted: bool = False
    failed: tuple[int, int, Tensor] | None = None  # batch, batches, and the numbers of its rows

    @property
    def epochs(self) -> int:
        return len(self.train)

    @property
    def history(self) -> dict[str, list[float]]:
        """Mean log-densities per row and the learning rate, by epoch."""
        return {
            "train": self.train,
            "validation": self.validation,
            "learning_rate": self.learning_rate,
        }


class NotFinite(Exception):
    """A batch has no finite loss: its number from 1, how many there are, numbers of its rows."""


class Bar:
    """A bar of epochs where ``verbose`` is set and somebody may be watching."""

    def __init__(self, verbose: int, epochs: int, what: str) -> None:
        self.bar: Any = None
        if verbose and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=epochs, desc=what, unit="epoch", leave=False)

    def epoch(self, text: str, line: str | None) -> None:
        """One more epoch: a text beside the bar, a line above it."""
        if line is not None:
            print(line) if self.bar is None else self.bar.write(line, file=sys.stdout)
        if self.bar is not None:
            self.bar.set_postfix_str(text)
            self.bar.update()

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


def make_optimizer(module: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay, over the parameters that are not frozen."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    # One call for all parameters: small tensors would cost ten calls each.
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(
        parameters, lr=plan.lr, weight_decay=plan.weight_decay, fused=fused or None
    )


def run_epoch(
    module: nn.Module,
    loss: Callable[[Tensor], Tensor],
    batches: list[Tensor],
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    record: Record,
    rates: Sequence[float],
) -> float:
    """One pass; the mean of minus the loss.  A step whose gradient is not finite is left out.

    Raises:
        NotFinite: a loss is not.
    """
    module.train()
    parameters = optimizer.param_groups[0]["params"]
    total, count = 0.0, 0
    for i, (index, rate) in enumerate(zip(batches, rates)):
        optimizer.param_groups[0]["lr"] = rate
        value = loss(index)
        if not math.isfinite(float(value.detach())):
            optimizer.zero_grad(set_to_none=True)
            raise NotFinite(i + 1, len(batches), index)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(parameters, plan.clip or math.inf)
        record.steps += 1
        if not math.isfinite(float(norm)):
            record.skipped += 1
            continue
        optimizer.step()
        total, count = total - float(value.detach()) * len(index), count + len(index)
    optimizer.zero_grad(set_to_none=True)
    return total / count if count else math.nan


def train(
    module: nn.Module,
    loss: Callable[[Tensor], Tensor],
    count: int,
    *,
    plan: Plan,
    generator: torch.Generator,
    validate: Callable[[], float] | None = None,
    verbose: int = 0,
    device: torch.device | str = "cpu",
) -> Record:
    """Train by minibatches, and leave the weights that validated best in the module.

    Args:
        module: its parameters are trained; it is left in training mode.
        loss: from the numbers of a batch's rows to minus their mean log-density.
        count: rows.
        plan: how.
        generator: of the order of the rows, on the CPU.
        validate: mean log-density of held-out rows; None keeps the last weights.
        verbose: as in `Bar`; 2 prints a line for every epoch besides.
        device: where ``loss`` wants its indices.

    Returns:
        The record; after Ctrl-C, or a loss that is not finite, of what was done until then.  Such a
        loss without ``validate`` leaves the weights as the epoch before had left them.
    """
    record = Record()
    learnable = any(p.requires_grad for p in module.parameters())
    epochs = plan.epochs if learnable else 0
    optimizer = make_optimizer(module, plan) if epochs else None
    per_epoch = -(-count // plan.batch_size)
    best_state: dict[str, Tensor] | None = None
    before: dict[str, Tensor] | None = None
    factor, stale = 1.0, 0
    bar = Bar(verbose, epochs, type(module).__name__)
    try:
        if validate is not None:
            record.best = validate()
            best_state = _copy(module)
        for epoch in range(1, epochs + 1):
            assert optimizer is not None
            if validate is None:
                before = _copy(module)
            order = torch.randperm(count, generator=generator, device="cpu").to(device)
            batches = plan.batches(order)
            rates = [plan.rate(epoch - 1 + i / per_epoch) * factor for i in range(per_epoch)]
            value = run_epoch(module, loss, batches, optimizer, plan, record, rates)
            record.train.append(value)
            record.learning_rate.append(rates[-1])
            current = value
            if validate is not None:
                current = validate()
                record.validation.append(current)
            told = f"train {record.train[-1]:.4f}"
            if record.validation:
                told += f", validation {record.validation[-1]:.4f}"
            bar.epoch(told, f"epoch {epoch}: {told}" if verbose > 1 else None)
            if current > record.best:
                record.best, record.best_epoch, stale = current, epoch, 0
                if validate is not None:
                    best_state = _copy(module)
            else:
                stale += 1
                if plan.patience is not None and validate is not None and stale >= plan.patience:
                    record.stopped_early = True
                    break
                if plan.schedule == "plateau" and stale % max(1, (plan.patience or 20) // 4) == 0:
                    factor *= PLATEAU_FACTOR
            if math.isnan(value):
                break  # not one step could be made
    except KeyboardInterrupt:
        record.interrupted = True
    except NotFinite as failure:
        record.failed = failure.args
        best_state = before if best_state is None else best_state
    finally:
        bar.close()
    if best_state is not None:
        module.load_state_dict(best_state)
    if validate is None:
        record.best_epoch = record.epochs
    return record


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def warn_of(record: Record, numbers: Tensor | None) -> None:
    """Warnings of what went wrong, at the line that called `fit`; ``numbers`` are those in X."""
    if record.failed is not None and numbers is not None:
        batch, batches, index = record.failed
        rows = numbers[index].sort().values.tolist()
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        warnings.warn(
            f"training stopped in epoch {record.epochs + 1} at batch {batch} of {batches}, whose "
            f"loss is not finite; the weights of epoch {record.best_epoch} are kept. It holds "
            f"{len(rows)} rows of X: {shown}. Look at these for numbers far from all others, or "
            "decrease lr or clip.",
            RuntimeWarning,
            stacklevel=3,
        )
    if record.interrupted:
        warnings.warn(
            f"fit was interrupted in epoch {record.epochs + 1}; the weights of epoch "
            f"{record.best_epoch} are kept. warm_start=True goes on from here.",
            RuntimeWarning,
            stacklevel=3,
        )
    if record.skipped:
        warnings.warn(
            f"{record.skipped} of {record.steps} steps had a gradient that is not finite and were "
            "left out. Decrease lr or clip, and look for columns with repeated values, "
            "whose density has no bound.",
            RuntimeWarning,
            stacklevel=3,
        )
