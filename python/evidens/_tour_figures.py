"""Pictures of the tour's page: digits as PNGs of black ink on nothing, charts as inline SVGs.

The charts' colours are the page's own variables, so one page serves light and dark.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.image import imsave

from evidens._tour_measure import Array, Row, Tour

# What matplotlib draws with, and the page's variable that takes its place.
INK, QUIET, ACCENT = "#101010", "#808080", "#c04020"
VARIABLES = {INK: "var(--ink)", QUIET: "var(--quiet)", ACCENT: "var(--accent)"}
RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "evidens",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
}


def digit(levels: Array, hidden: Array | None = None) -> str:
    """One image: ink by grey level, hidden pixels in the accent colour."""
    rgba = np.zeros((8, 8, 4))
    rgba[..., 3] = np.clip(levels.reshape(8, 8) / 16, 0, 1)
    if hidden is not None:
        rgba[hidden.reshape(8, 8)] = (*(int(ACCENT[i : i + 2], 16) / 255 for i in (1, 3, 5)), 0.55)
    buffer = io.BytesIO()
    imsave(buffer, rgba, format="png", metadata={"Software": ""})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="digit" alt="" src="data:image/png;base64,{data}">'


def grid(images: Iterable[str], columns: int, label: str, captions: Sequence[str] = ()) -> str:
    """A picture made of digits; ``label`` is what a screen reader says."""
    cells = list(images)
    if captions:
        pairs = zip(cells, captions, strict=True)
        cells = [f"<span>{image}<small>{caption}</small></span>" for image, caption in pairs]
    return (
        f'<div class="grid" role="img" aria-label="{html.escape(label)}" style="--n:{columns}">'
        f"{''.join(cells)}</div>"
    )


def svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an inline SVG with a name, the page's font and the page's colours."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    # Names are unique in a page, not only in a figure.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    head = f'<svg role="img" aria-label="{html.escape(label)}"'
    return re.sub(r'<svg (width|height)="[^"]*" (width|height)="[^"]*"', head, text, count=1)


def number(value: float | None, form: str) -> str:
    """With a minus sign as wide as a digit; nothing where there is no number."""
    return "" if value is None else format(value, form).replace("-", "&minus;")


def bars(cases: Sequence[tuple[str, float, bool]], form: str, kind: str) -> str:
    """Horizontal bars from zero: (name, value, ours)."""
    largest = max(value for _, value, _ in cases)
    lines = "".join(
        f"<li{' class=ours' if ours else ''}><span>{html.escape(name)}</span>"
        f'<i><b style="width:{100 * value / largest:.2f}%"></b></i>'
        f"<span>{format(value, form)}</span></li>"
        for name, value, ours in cases
    )
    return f'<ul class="bars {kind}">{lines}</ul>'


def anomaly_figures(row: Row, tour: Tour) -> str:
    """Histogram of -log p and the ROC curve, with one digit as the anomaly."""
    from sklearn.metrics import roc_curve

    shown = 8 if 8 in row.auroc else next(iter(row.auroc))
    scores, anomalous = row.anomaly_scores[shown], tour.digits.held_out_labels == shown
    edges = list(np.linspace(scores.min(), scores.max(), 32))
    with rc_context(RC):
        histogram = Figure(figsize=(4.6, 3.1), layout="constrained")
        axes = histogram.subplots()
        for part, colour, name in (
            (~anomalous, QUIET, "digits seen in training"),
            (anomalous, ACCENT, f"the digit {shown}, never seen"),
        ):
            axes.hist(scores[part], edges, density=True, color=colour, alpha=0.65, label=name)
        axes.set(xlabel="\N{MINUS SIGN}log p, nats", yticks=[])
        axes.spines.left.set_visible(False)
        histogram.legend(frameon=False, loc="outside upper left", ncols=2, columnspacing=1.2)

        roc = Figure(figsize=(4.6, 3.1), layout="constrained")
        axes = roc.subplots()
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=(0, (2, 3)))
        false, true, _ = roc_curve(anomalous, scores)
        axes.plot(false, true, color=ACCENT, linewidth=2)
        axes.set(xlabel="digits taken for an anomaly", ylabel=f"{shown}s found", aspect="equal")
        axes.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.text(0.96, 0.08, f"AUROC {row.auroc[shown][0]:.3f}", ha="right", color=INK)
        auroc = row.auroc[shown][0]
        return (
            '<div class="two"><figure>'
            + svg(histogram, "h", f"Histogram of minus log p: the {shown}s lie to the right")
            + "</figure><figure>"
            + svg(roc, "r", f"ROC curve with an area of {auroc:.3f}")
            + "</figure></div>"
        )
