"""The tour: its table, its page, and what it says where there is no matplotlib."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from evidens import _tour_page
from evidens import tour as command
from evidens._tour_figures import number
from evidens._tour_machines import Machine
from evidens._tour_measure import Row, Tour
from evidens._tour_networks import Downwards, Pictures
from evidens._tour_sequences import RowByRow, frames


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tour, str, str]:
    """What ``python -m evidens tour --quick`` measures, prints and writes."""
    kept: list[Tour] = []
    out = io.StringIO()
    # On a busy machine, threads that wait for each other would take most of the time.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(tmp_path_factory.mktemp("tour"))
        run = command.run
        patch.setattr(command, "run", lambda *a: kept.append(run(*a)) or kept[0])
        status = command.main(["--quick"])
        page = Path("evidens-tour.html").read_text("utf-8")
    torch.set_num_threads(threads)
    assert status == 0
    return kept[0], out.getvalue(), page


def test_both_sides_learn_the_same(quick):
    tour, _, _ = quick
    assert len(tour.rows) == len(command.FAMILIES)
    for row in tour.rows:
        if row.family.trained_once:
            assert not row.auroc
            assert (row.rmse is None) == (row.family.name != "MADE")
            continue
        assert 0.7 < row.auroc[8][0] <= 1
        if row.nats[1] is None:
            assert row.peer == "hmmlearn"
            assert importlib.util.find_spec("hmmlearn") is None
            continue
        assert row.difference < 1e-6
        assert row.nats[0] == pytest.approx(row.nats[1], abs=1e-6)
        assert row.auroc[8][0] == pytest.approx(row.auroc[8][1], abs=1e-6)


def test_imputation_beats_column_means_and_keeps_what_is_seen(quick):
    tour, _, _ = quick
    seen = ~tour.digits.missing
    for row in tour.rows:
        if row.family.trained_once:
            continue
        assert row.rmse < 0.9 * tour.baselines["column means"]
        np.testing.assert_allclose(row.imputed[seen], tour.digits.held_out[seen], atol=1e-9)
        # Less data to learn from, the same rows to describe.
        assert row.nats[0] - 15 < row.nats_incomplete < row.nats[0]


def test_table_has_a_row_of_numbers_for_every_family(quick):
    tour, printed, _ = quick
    lines = printed.splitlines()
    assert max(map(len, lines[:10])) <= 100
    for row in tour.rows:
        (line,) = (line for line in lines if line.startswith(row.name))
        numbers = [float(word) for word in line[len(row.name) :].split()]
        assert numbers[0] == pytest.approx(row.nats[0], abs=0.006)
        a, b = row.fit_seconds
        if row.rmse is None:
            assert numbers[1:] == [pytest.approx(1e3 * a, rel=0.01)]
            continue
        if row.family.trained_once:
            assert len(numbers) == 3
            continue
        assert numbers[-1] == pytest.approx(row.rmse, abs=0.006)
        assert len(numbers) == (4 if b is None else 8)
        if b is not None:
            assert numbers[4] == pytest.approx(b / a, rel=0.05, abs=0.06)
        assert row.family.incumbent in printed
    assert any(line.startswith("column means") for line in lines)


def test_a_sequence_model_reads_rows(quick):
    """Rows of pixels in order: (N, 64) images are N sequences of 8 frames."""
    tour, _, page = quick
    (row,) = (row for row in tour.rows if isinstance(row.model, RowByRow))
    noisy = tour.digits.held_out_noisy[:3]
    x, lengths = frames(noisy)
    assert (x.shape, lengths.tolist()) == ((24, 8), [8, 8, 8])
    np.testing.assert_array_equal(x[8:16], noisy[1].reshape(8, 8))
    log_p = row.model.log_prob(noisy)
    np.testing.assert_allclose(row.model.score_samples(noisy), log_p)
    assert row.model.score(noisy) == pytest.approx(log_p.mean())
    # The order of rows counts: most digits make less sense upside down.
    every = tour.digits.held_out_noisy
    turned = every.reshape(-1, 8, 8)[:, ::-1].reshape(-1, 64)
    assert row.model.score(turned) < row.model.score(every) - 5
    path = row.model.on_best_path(noisy)
    assert path.shape == noisy.shape
    assert abs(path - noisy).mean() < abs(noisy.mean(0) - noisy).mean()
    assert row.model.sample(2).shape == (2, 64)
    assert "Read row by row" in page


@pytest.mark.parametrize("family", ["Glow", "MADE", "PixelCNN"])
def test_a_network_draws_pictures_and_scores_grey_levels(quick, family):
    tour, _, page = quick
    (row,) = (row for row in tour.rows if row.family.name == family)
    assert isinstance(row.model, Pictures)
    images = tour.digits.held_out_noisy[:5]
    log_p = row.model.log_prob(images)
    # The tour's noise on top of the levels is nothing to it.
    np.testing.assert_array_equal(log_p, row.model.log_prob(np.floor(images)))
    drawn = row.model.sample(3)
    assert drawn.shape == (3, 64)
    assert (drawn == np.floor(drawn) + 0.5).all()
    assert _tour_page.STORIES[family][0] in page


def test_pictures_are_continued(quick):
    tour, _, _ = quick
    (row,) = (row for row in tour.rows if isinstance(row.model, Downwards))
    images = tour.digits.held_out[:4]
    filled = row.model.continued(images, 3)
    np.testing.assert_array_equal(filled[:, :24], images[:, :24])
    assert (filled[:, 24:] != images[:, 24:]).any()


def test_a_machine_says_how_sure_it_is_of_its_density(quick):
    tour, _, page = quick
    (row,) = (row for row in tour.rows if isinstance(row.model, Machine))
    exact = row.model.model.density_kind_ == "exact"
    assert (row.model.error == 0) == exact
    assert row.model.parts.shape == (len(row.model.model.components_), 64)
    assert row.model.sample(3).shape == (3, 64)
    assert "Put together from parts" in page
    assert f"{number(row.nats[0], '.1f')} nats per held-out digit, give or" in page


def test_a_second_fit_starts_anew(quick):
    tour, _, _ = quick
    (row,) = (row for row in tour.rows if isinstance(row.model, RowByRow))
    means = row.model.model.means_.copy()
    row.model.fit(tour.digits.train_noisy)
    np.testing.assert_array_equal(row.model.model.means_, means)


def test_without_hmmlearn_its_figures_are_left_out_and_said_to_be(monkeypatch, quick):
    monkeypatch.setitem(sys.modules, "hmmlearn.hmm", None)
    tour, _, _ = quick
    i = next(i for i, row in enumerate(tour.rows) if row.peer == "hmmlearn")
    ours, theirs = tour.rows[i].family.build(tour.digits.train_noisy[:200])
    assert isinstance(ours, RowByRow)
    assert theirs is None
    rows = list(tour.rows)
    rows[i] = without_incumbent(rows[i])
    lonely = replace(tour, rows=rows)
    assert lonely.incumbents == "sklearn"
    for text in (command.table(lonely), _tour_page.render(lonely)):
        flat = " ".join(text.split())
        assert "hmmlearn.hmm.GaussianHMM (not installed: no figures)" in flat
        assert "GaussianMixture (not installed" not in flat


def without_incumbent(row: Row) -> Row:
    return replace(
        row,
        nats=(row.nats[0], None),
        difference=None,
        seconds={name: (a, None) for name, (a, _) in row.seconds.items()},
        auroc={digit: (a, None) for digit, (a, _) in row.auroc.items()},
    )


class Page(HTMLParser):
    """Everything on a page that could load something, and everything that has a name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        self.names += [values["id"]] if values.get("id") else []
        for name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
            if values.get(name):
                self.links.append(values[name])


def test_page_needs_nothing_but_itself(quick):
    _, _, text = quick
    page = Page(text)
    targets = [link[1:] for link in page.links if link.startswith("#")]
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not re.search(r"https?:|@import|<script|<link", text)
    targets += re.findall(r"url\(#([^)]*)\)", text)
    assert text.count("url(") == text.count("url(#")
    assert len(page.names) == len(set(page.names))
    assert set(targets) <= set(page.names)


def test_page_has_its_pictures_and_their_descriptions(quick):
    tour, _, text = quick
    page = Page(text)
    images = [values for tag, values in page.tags if tag == "img"]
    assert len(images) > 100
    assert all("alt" in values for values in images)
    described = [values for _, values in page.tags if values.get("role") == "img"]
    assert len(described) >= 8
    assert all(values.get("aria-label") for values in described)
    assert sum(tag == "svg" for tag, _ in page.tags) == 2
    for row in tour.rows:
        assert row.family.setting in text
    assert "prefers-color-scheme: dark" in text


def test_without_matplotlib_the_table_is_printed_and_the_page_explained(
    quick, monkeypatch, tmp_path, capsys
):
    tour, _, _ = quick
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "run", lambda *_: tour)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert command.main(["--quick"]) == 0
    *rest, last = capsys.readouterr().out.strip().splitlines()
    assert "\n".join(rest).strip() == command.table(tour)
    assert 'pip install "evidens[plot]"' in last
    assert not list(tmp_path.iterdir())


def test_a_family_without_incumbent_has_its_row(quick, tmp_path):
    tour, _, _ = quick
    row = tour.rows[0]
    lonely = replace(tour, rows=[without_incumbent(row)])
    (line,) = (line for line in command.table(lonely).splitlines() if line.startswith(row.name))
    assert len(line[len(row.name) :].split()) == 4
    assert "None" not in _tour_page.render(lonely)
