"""The style sheet of the tour's page."""

CSS = """
:root {
  --paper: #fdfcfa; --ink: #1d1b19; --quiet: #8d877f; --line: #e4dfd8; --accent: #b8451f;
  --bar: #c9c3ba; color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #171614; --ink: #ece8e1; --quiet: #968f85; --line: #35322e; --accent: #ee8a5c;
    --bar: #5a554e;
  }
  .digit { filter: invert(1) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.6 Charter, "Bitstream Charter", "Sitka Text", Cambria, "Noto Serif", Georgia,
    serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 52rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
section, footer { margin-top: 4.5rem; }
h1 { font-size: clamp(2rem, 6vw, 3.25rem); line-height: 1.1; font-weight: 500;
  letter-spacing: -0.02em; margin: 0 0 2rem; }
h2 { font-size: 1.5rem; line-height: 1.25; font-weight: 500; margin: 0 0 0.75rem; }
p { margin: 0 0 1rem; max-width: 38rem; }
.lead { font-size: 1.1875rem; margin-top: 1.75rem; max-width: 42rem; }
small { font-size: 0.8em; color: var(--quiet); font-weight: 400; }
code { font: 0.86em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
h3, .mark, .strip, .note, table, .bars, .case, .grid small, dl, svg {
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
svg text { font-family: inherit !important; }
h3 { font-size: 0.875rem; font-weight: 600; margin: 2rem 0 0.5rem; }
.mark { font-size: 0.9375rem; font-weight: 600; color: var(--accent); letter-spacing: 0.02em;
  margin-bottom: 2.5rem; }
.note { font-size: 0.8125rem; line-height: 1.55; color: var(--quiet); margin-top: 0.75rem; }
.strip { font-size: 0.8125rem; color: var(--quiet); margin: 1.25rem 0 0.4rem; }

.grid { display: grid; grid-template-columns: repeat(var(--n), 1fr);
  gap: clamp(3px, 1vw, 10px); }
.grid + .grid { margin-top: clamp(3px, 1vw, 10px); }
.digit { display: block; width: 100%; aspect-ratio: 1; image-rendering: pixelated; }
.grid small { display: block; text-align: center; font-size: clamp(0.5625rem, 1.6vw, 0.75rem);
  font-variant-numeric: tabular-nums; margin-top: 0.2rem; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.875rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.5rem 0 0.5rem 1.1rem; text-align: right; font-weight: 400; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
thead th { color: var(--quiet); padding-bottom: 0.1rem; padding-top: 0.1rem; font-size: 0.8125rem; }
thead tr:last-child > * { border-bottom: 1px solid var(--line); padding-bottom: 0.5rem; }
tbody td:nth-child(2), tbody td:nth-child(4), tbody td:nth-child(6), tbody td:nth-child(7) {
  font-weight: 600; }
tbody td:nth-child(6) { color: var(--accent); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.other > * { color: var(--quiet); }

.bars { list-style: none; margin: 0; padding: 0; font-size: 0.8125rem;
  font-variant-numeric: tabular-nums; }
.bars li { display: grid; grid-template-columns: var(--label) 1fr 3rem; gap: 0.75rem;
  align-items: center; margin: 0.3rem 0; line-height: 1.3; }
.bars span:last-child { text-align: right; }
.bars i { display: block; height: 0.7rem; }
.bars b { display: block; height: 100%; background: var(--bar); border-radius: 1px; }
.bars .ours b { background: var(--accent); }
.times { --label: 3.5rem; }
.errors { --label: clamp(6.5rem, 30%, 13rem); margin-bottom: 1.5rem; }
.case { display: flex; justify-content: space-between; align-items: baseline; max-width: none;
  font-size: 0.8125rem; color: var(--quiet); margin: 1rem 0 0; }
.case strong { color: var(--ink); font-size: 1rem; }

.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr));
  gap: 0 3rem; }
figure { margin: 1rem 0 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 30rem; }
dl { display: grid; grid-template-columns: 8rem 1fr; gap: 0.3rem 1rem; font-size: 0.875rem;
  margin: 0; }
dt { color: var(--quiet); }
dd { margin: 0; }
@media print { section { break-inside: avoid; } }
"""
