"""What README.md and the tutorial show is what happens."""

import shutil
from pathlib import Path

import pytest

from tests.support.doc_runner import broken_links, run_page

HOME = Path(__file__).parent.parent
PAGES = [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))]


@pytest.mark.skipif(shutil.which("bash") is None, reason="the pages' commands are for bash")
@pytest.mark.parametrize(("page", "blocks"), [("README.md", 6), ("docs/tutorial.md", 20)])
def test_what_a_page_shows_is_what_happens(tmp_path: Path, page: str, blocks: int) -> None:
    assert run_page(HOME / page, tmp_path) >= blocks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_links_to_files_that_are_there(page: Path) -> None:
    assert broken_links(page) == []
