"""The tour's page: one HTML file with everything in it, no script and no address of another."""

from __future__ import annotations

import html

import numpy as np

from evidens._tour_figures import anomaly_figures, bars, digit, grid, number
from evidens._tour_machines import Machine
from evidens._tour_measure import Array, Row, Tour
from evidens._tour_networks import Downwards, Pictures
from evidens._tour_sequences import RowByRow
from evidens._tour_style import CSS


def draws(model: object, n: int) -> tuple[Array, Array | None]:
    """``n`` samples as grey levels, and their components where the model tells them."""
    drawn = model.sample(n)  # type: ignore[attr-defined]
    rows, component = drawn if isinstance(drawn, tuple) else (drawn, None)
    # The noise in [0, 1) that the model was fitted with has mean one half.
    return np.asarray(rows) - 0.5, component


def hero(row: Row, tour: Tour) -> str:
    rows, _ = draws(row.model, 400)
    order = np.random.default_rng(0).permutation(len(rows))[:45]
    seconds, theirs = row.fit_seconds
    text = (
        f"<code>evidens.{row.family.name}</code> drew them, after {1e3 * seconds:.0f}&nbsp;ms with"
        f" {len(tour.digits.train):,} real ones."
    )
    if theirs is not None and row.difference is not None:
        text += (
            f" <code>{row.family.incumbent}</code> learns the same density from the same start in"
            f" {1e3 * theirs:.0f}&nbsp;ms."
        )
    images = grid((digit(rows[i]) for i in order), 15, "45 digits drawn from the mixture")
    return (
        "<header><p class=mark>evidens</p><h1>Nobody wrote these digits.</h1>"
        f"{images}<p class=lead>{text}</p></header>"
    )


def numbers(tour: Tour) -> str:
    theirs = tour.incumbents
    body = []
    for row in tour.rows:
        a, b = row.fit_seconds
        cells = [
            *(number(value, ".2f") for value in row.nats),
            f"{1e3 * a:.1f}",
            number(b and 1e3 * b, ".1f"),
            number(b and b / a, ".1f") + ("&times;" if b else ""),
            *(number(value, ".3f") for value in row.mean_auroc),
            number(row.rmse, ".2f"),
        ]
        head = f"<th scope=row>{row.family.name} <small>{html.escape(row.family.setting)}</small>"
        body.append(f"<tr>{head}</th>" + "".join(f"<td>{c}</td>" for c in cells))
    for name, rmse in tour.baselines.items():
        body.append(f"<tr class=other><th scope=row>{name}</th><td colspan=7><td>{rmse:.2f}")
    pair = f"<th>evidens</th><th>{theirs}</th>"
    peers = f"In the columns “{theirs}”: {html.escape(tour.peers)}." if tour.peers else ""
    anomalies = list(tour.rows[0].auroc)
    which = "Each digit in turn" if len(anomalies) > 1 else f"The digit {anomalies[0]}"
    return f"""<section><h2>The numbers</h2>
<div class=scroll tabindex=0 role=region aria-label=Results><table><thead>
<tr><td></td><th colspan=2>nats per digit</th><th colspan=3>milliseconds to fit</th>
<th colspan=2>anomaly AUROC</th><th>RMSE</th></tr>
<tr><td></td>{pair}{pair}<th>ratio</th>{pair}<th>imputed</th></tr></thead>
<tbody>{"".join(body)}</tbody></table></div>
<p class=note>Mean log-density of {len(tour.digits.held_out):,} held-out digits; {tour.agreement}.
{peers}
{which} was left out of training and had to be found among the held-out digits by its low log p.
A quarter of the pixels was hidden and filled; the error is in grey levels, 0 to 16.</p>
</section>"""


def components(row: Row) -> str:
    means, weights = getattr(row.model, "means_", None), getattr(row.model, "weights_", None)
    rows, component = draws(row.model, 800)
    if means is None or weights is None or component is None:
        return ""
    order = np.argsort(weights)[::-1][:10]
    images = [digit(means[k] - 0.5) for k in order]
    shares = [f"{weights[k]:.0%}" for k in order]
    drawn = []
    for i in range(4):
        for k in order:
            own = rows[component == k]
            drawn.append(digit(own[i] if i < len(own) else np.zeros(64)))
    return (
        "<section><h2>What it learnt</h2><p>Nobody told the mixture which digit is which. Its"
        " components found them: the mean of each and its share, and four draws from it.</p>"
        + grid(images, len(order), "The mean digit of each component", shares)
        + grid(drawn, len(order), "Four samples from each component")
        + "</section>"
    )


def missing(row: Row, tour: Tour) -> str:
    d = tour.digits
    chosen = [int(np.flatnonzero(d.held_out_labels == k)[0]) for k in range(10)]
    strips = (
        ("written", [digit(d.held_out[i]) for i in chosen]),
        ("a quarter hidden", [digit(d.held_out[i], d.missing[i]) for i in chosen]),
        ("imputed", [digit(row.imputed[i]) for i in chosen]),
    )
    pictures = "".join(
        f"<p class=strip>{name}</p>{grid(images, 10, f'The digits 0 to 9, {name}')}"
        for name, images in strips
    )
    cases = [(r.name, r.rmse, True) for r in tour.rows if r.rmse is not None]
    cases += [(name, rmse, False) for name, rmse in tour.baselines.items()]
    error = "error of the hidden pixels, in grey levels (root mean square)"
    kept = (
        f"Hide a quarter of the <em>training</em> pixels, too, and the model still reaches"
        f" {number(row.nats_incomplete, '.1f')} nats per held-out digit, against"
        f" {number(row.nats[0], '.1f')} from complete rows. It integrates over what it does not"
        " see; nothing is filled in first."
    )
    return (
        "<section><h2>With a quarter of the pixels missing</h2>"
        f"{pictures}<h3>{error}</h3>{bars(cases, '.2f', 'errors')}<p>{kept}</p></section>"
    )


def typical(row: Row, tour: Tour) -> str:
    log_p = np.asarray(row.model.log_prob(tour.digits.held_out_noisy))
    order = np.argsort(log_p)
    parts = []
    for name, chosen in (("most", order[::-1][:10]), ("least", order[:10])):
        captions = [number(log_p[i], ".0f") for i in chosen]
        images = [digit(tour.digits.held_out[i]) for i in chosen]
        label = f"The ten {name} typical held-out digits with their log p"
        parts.append(f"<p class=strip>{name} typical</p>{grid(images, 10, label, captions)}")
    return (
        "<section><h2>Typical and strange</h2><p>Held-out digits in the order of their log p,"
        f" in nats.</p>{''.join(parts)}</section>"
    )


def anomalies(row: Row, tour: Tour) -> str:
    digits = tour.digits
    images = [digit(digits.train[digits.train_labels == k].mean(0)) for k in row.auroc]
    captions = [f"{pair[0]:.3f}" for pair in row.auroc.values()]
    every = ""
    if len(images) > 1:
        label = "AUROC for each digit as the anomaly: " + ", ".join(
            f"{k} {pair[0]:.3f}" for k, pair in row.auroc.items()
        )
        every = f"<p class=strip>AUROC, digit by digit</p>{grid(images, 10, label, captions)}"
    return (
        "<section><h2>What it has never seen</h2><p>Leave one digit out of training; then rank all"
        f" held-out digits by &minus;log p.</p>{anomaly_figures(row, tour)}{every}</section>"
    )


def row_by_row(row: Row, tour: Tour) -> str:
    """What a model of sequences makes of the digits: its states, hidden rows, and its draws."""
    if not isinstance(row.model, RowByRow):
        return ""
    d, auroc = tour.digits, number(row.mean_auroc[0], ".3f")
    chosen = [int(np.flatnonzero(d.held_out_labels == k)[1]) for k in range(10)]
    written = d.held_out[chosen]
    hidden = np.zeros((8, 8), dtype=bool)
    hidden[3:5] = True
    seen = np.where(hidden.ravel(), np.nan, written + 0.5)
    drawn, _ = draws(row.model, 20)
    mixtures = [r.nats[0] for r in tour.rows if hasattr(r.model, "weights_")]
    strips = (
        ("written", [digit(image) for image in written], 10),
        (
            "the most probable path: each row is the mean of its state",
            [digit(image) for image in row.model.on_best_path(written + 0.5) - 0.5],
            10,
        ),
        ("two rows hidden", [digit(image, hidden.ravel()) for image in written], 10),
        ("imputed", [digit(image) for image in row.model.impute(seen) - 0.5], 10),
        ("drawn, row by row", [digit(image) for image in drawn], 10),
    )
    pictures = "".join(
        f"<p class=strip>{name}</p>{grid(images, n, f'Digits, {name}')}"
        for name, images, n in strips
    )
    return (
        "<section><h2>Read row by row</h2><p>To"
        f" <code>evidens.{row.family.name}</code> a digit is a sequence of eight rows, and each row"
        " belongs to one of"
        f" {len(row.model.model.means_)} hidden states. It knows a digit by what may follow what:"
        f" {number(row.nats[0], '.1f')} nats per digit, where the best mixture has"
        f" {number(max(mixtures), '.1f')}. It is also easily"
        " pleased by a digit it never saw, which is made of rows that it did see: as a detector it"
        f" is worse (AUROC {auroc}).</p>{pictures}</section>"
    )


# Title and story of a model, which ends with its figures.
STORIES = {
    "Glow": (
        "Bent into shape",
        "has no components and no states: it bends a normal distribution of 64 numbers into one of"
        " digits, by layers that can be undone, so that the density stays exact.",
    ),
    "MADE": (
        "Pixel by pixel",
        "asks what a pixel is, given those before it, and answers for all of them in one pass of a"
        " network whose weights are masked. Drawing is one pass of arithmetic, too.",
    ),
    "PixelCNN": (
        "From the top left",
        "reads a picture as one reads a page: a pixel is known by the pixels above it and to the"
        " left, through masked convolutions.",
    ),
}


def by_network(row: Row, tour: Tour) -> str:
    """Draws of a network, and what it makes of the beginning of a digit."""
    if not isinstance(row.model, Pictures):
        return ""
    title, story = STORIES[row.family.name]
    drawn, _ = draws(row.model, 60)
    parts = [grid((digit(image) for image in drawn), 15, f"60 digits drawn by {row.family.name}")]
    if isinstance(row.model, Downwards):
        d, rows = tour.digits, 4
        chosen = np.concatenate([np.flatnonzero(d.held_out_labels == k)[:1] for k in range(10)])
        below = np.arange(64) >= 8 * rows
        filled = row.model.continued(np.repeat(d.held_out[chosen], 3, 0), rows)
        strips = [("upper half", [digit(image, below) for image in d.held_out[chosen]])]
        strips += [("continued", [digit(image) for image in filled[i::3]]) for i in range(3)]
        parts += [
            f"<p class=strip>{name}</p>{grid(images, 10, f'The digits 0 to 9, {name}')}"
            for name, images in strips
        ]
    return (
        f"<section><h2>{title}</h2><p><code>evidens.{row.family.name}</code> {story} It reaches"
        f" {number(row.nats[0], '.1f')} nats per held-out digit after {row.fit_seconds[0]:.0f}"
        f" seconds, and it drew these.</p>{''.join(parts)}</section>"
    )


def by_machine(row: Row, tour: Tour) -> str:
    """Parts that a machine puts digits together from, and its draws."""
    if not isinstance(row.model, Machine):
        return ""
    drawn, _ = draws(row.model, 30)
    parts = [digit(8 + 2 * part) for part in row.model.parts[:30]]
    return (
        "<section><h2>Put together from parts</h2><p><code>evidens.GaussianRBM</code> has hidden"
        " units that are on or off, and each adds a part to the picture: a density of 2 to the"
        f" power of {len(row.model.parts)} Gaussians. Its normaliser cannot be counted, so it is"
        f" estimated, with its error: {number(row.nats[0], '.1f')} nats per held-out digit, give or"
        f" take {number(row.model.error, '.2f')}.</p>"
        + grid(parts, 15, "What 30 hidden units add to a picture, light to dark")
        + grid((digit(image) for image in drawn), 15, "30 digits drawn from the machine")
        + "</section>"
    )


def speed(tour: Tour) -> str:
    parts = []
    for row in tour.rows:
        if row.family.trained_once:
            continue
        cases = [f"<h3>{row.family.name} <small>{row.family.setting}</small></h3>"]
        for name, (a, b) in row.seconds.items():
            sides, ratio = [("evidens", 1e3 * a, True)], ""
            if b is not None:
                sides.append((row.peer, 1e3 * b, False))
                ratio = f"<strong>{b / a:.1f}&times;</strong>"
            cases.append(f"<p class=case>{name}{ratio}</p>{bars(sides, '.1f', 'times')}")
        parts.append(f"<div>{''.join(cases)}</div>")
    return (
        "<section><h2>Speed</h2><p>Milliseconds, the median of runs that took turns after a"
        " warm-up; same rows, start, settings and threads.</p>"
        f"<div class=two>{''.join(parts)}</div></section>"
    )


def colophon(tour: Tour) -> str:
    lines = "".join(
        f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in tour.machine.items()
    )
    return (
        f"<footer><h2>Measured on</h2><dl>{lines}<dt>whole tour</dt><dd>{tour.seconds:.0f}"
        " seconds</dd></dl><p class=note>scikit-learn's bundled digits: 8 &times; 8 pixels with 17"
        " grey levels, here with uniform noise in [0,&nbsp;1) on each pixel, so that a density is"
        " defined and its mean log is a lower bound of the digit's log-probability. Made by"
        " <code>python -m evidens tour</code>.</p></footer>"
    )


def render(tour: Tour) -> str:
    """The whole page; the first family is the one that is pictured."""
    first = tour.rows[0]
    body = "\n".join(
        [
            hero(first, tour),
            numbers(tour),
            components(first),
            missing(first, tour),
            typical(first, tour),
            anomalies(first, tour),
            *(row_by_row(row, tour) for row in tour.rows),
            *(by_machine(row, tour) for row in tour.rows),
            *(by_network(row, tour) for row in tour.rows),
            speed(tour),
            colophon(tour),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>evidens: a tour</title>'
        f"<style>{CSS}</style></head><body><main>\n{body}\n</main></body></html>\n"
    )
