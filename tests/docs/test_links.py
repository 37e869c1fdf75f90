"""Links of the README and of the pages lead to files, pages and headings that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE, SOURCE = "https://modernbert.github.io/modernbert/", "https://github.com/modernbert/modernbert/blob/main/"
# Written when the site is built.
GENERATED = {"contributing", "changelog", "reference/cli", "reference/configs", "reference/http"}
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")] + sorted(
    ROOT.glob("docs/**/*.md")
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(SOURCE):
            assert (ROOT / link.removeprefix(SOURCE)).exists(), link
        elif link.startswith(SITE):
            path, _, heading = link.removeprefix(SITE).partition("#")
            check_site_page(path.strip("/") or "index", heading)
        elif not link.startswith("http"):
            path, _, heading = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if target.suffix == ".md" and target.is_relative_to(ROOT / "docs"):
                check_site_page(str(target.relative_to(ROOT / "docs").with_suffix("")), heading)
            else:
                assert target.exists(), link


def check_site_page(name: str, heading: str) -> None:
    if name in GENERATED:
        return
    if Path(name).suffix:
        assert (ROOT / "docs" / name).exists(), name
        return
    page = ROOT / "docs" / f"{name}.md"
    assert page.exists(), name
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    assert not heading or heading in {re.sub(r"[^\w]+", "-", each.lower()).strip("-") for each in headings}, heading


def test_the_make_targets_that_pages_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"^(?:    )?make ([\w-]+)", page.read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"
