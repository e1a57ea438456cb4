"""Put together what the site is built from: ``python scripts/write_site.py build/docs``, which ``make docs`` hands to MkDocs.

The pages of ``docs/`` are written to be read where the code is, too. Here they are joined by the README as the first page, the
changelog, the reference and the page of ``crossent explore``. A link to a file elsewhere leads to a page that shows the file.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import reference_pages

ROOT = Path(__file__).resolve().parents[1]
MOVED = {  # pages of the site whose files lie elsewhere
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/README.md": "examples.md",
    "docs/migration.md": "migration/index.md",
    "docs": "index.md",
}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
LANGUAGES = {".py": "python", ".h": "cpp", ".cpp": "cpp", ".txt": "text", ".md": "markdown"}
EXPLORE = "explore-page.html"
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
OPEN = f"[Open the page]({EXPLORE}){{ .md-button .md-button--primary }}\n\n"


class Site:
    """The pages and files of the site, by their paths on it."""

    def __init__(self) -> None:
        self.pages: dict[str, str] = {}
        self.files: dict[str, Path] = {}
        elsewhere = [ROOT / source for source in MOVED if source.endswith(".md")]
        for path in sorted({*elsewhere, *(ROOT / "docs").rglob("*.md")}):
            self.add(path, self.place(path.relative_to(ROOT).as_posix()))
        for page, text in reference_pages.pages().items():
            self.pages[page] = self.adapted(text, ROOT / "docs" / page, page)
        for path in sorted((ROOT / "docs" / "img").iterdir()):
            self.files[f"img/{path.name}"] = path
        self.pages["explore.md"] = self.pages["explore.md"].replace(
            "## Who gets pushed?", OPEN + "## Who gets pushed?", 1
        )

    def add(self, source: Path, page: str) -> None:
        """Add a page that is written in a file."""
        self.pages[page] = self.adapted(source.read_text("utf-8"), source, page)

    def adapted(self, text: str, source: Path, page: str) -> str:
        """Change what MkDocs reads in another way than a code host, and lead every link to a page of the site."""
        parts = re.split(r"(^```.*\n(?:.*\n)*?```$)", text, flags=re.MULTILINE)
        return "".join(
            shown_code(part) if number % 2 else self.linked(lists_apart(part), source, page)
            for number, part in enumerate(parts)
        )

    def linked(self, text: str, source: Path, page: str) -> str:
        """Lead the links of a text to pages of the site; what looks like a link in a piece of code is none."""
        parts = re.split(r"(`[^`\n]*`)", text)
        return "".join(
            part if number % 2 else LINK.sub(lambda link: self.led(link[1], source, page) + (link[2] or ""), part)
            for number, part in enumerate(parts)
        )

    def led(self, link: str, source: Path, page: str) -> str:
        """Say where a link of a page leads on the site, and see to it that there is something."""
        path = Path(os.path.normpath(source.parent / link)).relative_to(ROOT).as_posix()
        return posixpath.relpath(self.place(path), posixpath.dirname(page) or ".")

    def place(self, path: str) -> str:
        """Give the place on the site of a file of the project."""
        if path in MOVED:
            return MOVED[path]
        if path.startswith("docs/"):
            return path.removeprefix("docs/")
        if path.endswith((".png", ".json")):  # as they are
            self.files[f"source/{path}"] = ROOT / path
            return f"source/{path}"
        return self.show_folder(path) if (ROOT / path).is_dir() else self.show(path)

    def show(self, path: str) -> str:
        """Make a page that shows a file."""
        page = f"source/{path}" if path.endswith(".md") else f"source/{path}.md"
        if page not in self.pages:
            text = (ROOT / path).read_text("utf-8").rstrip("\n")
            if path.endswith(".md"):
                self.pages[page] = ""  # it may lead to itself
                self.pages[page] = self.adapted(text, ROOT / path, page)
            else:
                language = LANGUAGES.get(Path(path).suffix, "text")
                self.pages[page] = f"{UNSEARCHED}# {path}\n\n````{language}\n{text}\n````\n"
        return page

    def show_folder(self, path: str) -> str:
        """Make a page that lists the files of a folder."""
        page = f"source/{path}/index.md"
        if page not in self.pages:
            self.pages[page] = ""
            names = sorted(each.name for each in (ROOT / path).iterdir() if each.suffix in LANGUAGES)
            files = [f"- [{name}]({posixpath.basename(self.show(f'{path}/{name}'))})" for name in names]
            self.pages[page] = UNSEARCHED + "\n".join([f"# {path}", "", *files, ""])
        return page

    def write(self, folder: Path) -> None:
        """Write everything, and the page of ``crossent explore``."""
        from crossent.tools.explore.scenes import explore_page

        shutil.rmtree(folder, ignore_errors=True)
        for page, text in self.pages.items():
            (folder / page).parent.mkdir(parents=True, exist_ok=True)
            (folder / page).write_text(text, encoding="utf-8")
        for name, path in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
        shutil.copyfile(ROOT / "scripts" / "site.css", folder / "site.css")
        (folder / EXPLORE).write_text(explore_page(), encoding="utf-8")


def shown_code(block: str) -> str:
    """Colour a session as one, and drop the empty line with which doctest knows its end."""
    block = re.sub(r"^```python\n(?=>>> )", "```pycon\n", block)
    return re.sub(r"\n\n```$", "\n```", block)


def lists_apart(text: str) -> str:
    """Put an empty line before a list that follows a paragraph, without which MkDocs sees no list."""
    lines: list[str] = []
    for line in text.split("\n"):
        item = r"(?:-|\d+\.) "
        if re.match(item, line) and lines and lines[-1].strip() and not re.match(rf"\s|{item}", lines[-1]):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    Site().write(Path(sys.argv[1]))
