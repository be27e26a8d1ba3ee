"""Check the documentation: links and named files exist, Python snippets run.

Blocks fenced as ``python`` in README.md and below docs/ run, all blocks of a file in one process
and an empty folder.  A block that starts with ``>>>`` runs as a doctest.

Usage: python scripts/check_docs.py [--links-only]
"""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"")
# A path of the repository in backticks; one with a placeholder, as `csrc/<stem>.cpp`, is none.
NAMED_FILE = re.compile(
    r"`((?:csrc|kernels|python|tests|bench|docs|scripts|examples|\.ci)/[\w./-]+\.\w+)`"
)
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def slugs(text: str) -> set[str]:
    """Anchors of a page's headings."""
    titles = re.findall(r"^#+\s+(.+?)\s*$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def check_links(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    prose = FENCE.sub("", text)
    problems = []
    for match in LINK.finditer(re.sub(r"`[^`\n]*`", "", prose)):
        link = match[1] or match[2]
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            problems.append(f"{link}: no such file")
        elif anchor and target.suffix == ".md" and anchor not in slugs(target.read_text("utf-8")):
            problems.append(f"{link}: no such heading")
    problems += [
        f"`{name}`: no such file"
        for name in NAMED_FILE.findall(prose)
        if not (ROOT / name).exists()
    ]
    return [f"{page.relative_to(ROOT)}: {problem}" for problem in problems]


def run_page(page: Path) -> int:
    """Run the page's Python blocks in this process, in one namespace; the number of failures."""
    text = page.read_text(encoding="utf-8")
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for match in FENCE.finditer(text):
        language, block = match.groups()
        first_line = text.count("\n", 0, match.start(2))
        if language != "python":
            continue
        if block.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(block, namespace, "", str(page), first_line)
            runner.run(test, clear_globs=False)
            namespace = test.globs
        else:
            exec(compile("\n" * first_line + block, str(page), "exec"), namespace)
    return runner.summarize(verbose=False).failed


def check_snippets(page: Path) -> list[str]:
    """Run the page in a process of its own, in an empty folder."""
    if "```python" not in page.read_text(encoding="utf-8"):
        return []
    print(f"running the snippets of {page.relative_to(ROOT)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--run", page], cwd=folder, capture_output=True, text=True
        )
    if done.returncode == 0:
        return []
    return [f"{page.relative_to(ROOT)}: a snippet failed\n{(done.stdout + done.stderr)[-4000:]}"]


def main() -> int:
    if "--run" in sys.argv[1:]:
        return bool(run_page(Path(sys.argv[2])))
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    problems = [problem for page in sorted(pages) for problem in check_links(page)]
    if "--links-only" not in sys.argv[1:]:
        docs = ROOT / "docs"
        for page in [
            ROOT / "README.md",
            *docs.glob("*.md"),
            *docs.glob("ops/*.md"),
            *docs.glob("models/*.md"),
        ]:
            problems += check_snippets(page)
    print(f"checked {len(pages)} pages")
    for problem in problems:
        print(f"check_docs: {problem}", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
