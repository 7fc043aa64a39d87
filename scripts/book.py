#!/usr/bin/env python3
"""Builds the documentation as a book into target/book and checks every link in it.

The pages of docs/ and the documents beside it (OPERATIONS.md, ARCHITECTURE.md, ...) are put into one directory, because
mdBook takes pages of one directory only; links between them are rewritten. Then `mdbook build` runs, and every link and
anchor of the HTML that leads to the book itself must exist. Needs mdbook 0.5 in PATH (scripts/book.txt).
"""

import re
import shutil
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "target" / "book"
# Documents of the repository's root that are pages of the book, with their titles.
BESIDE = {
    "OPERATIONS.md": "Operations",
    "SECURITY.md": "Security",
    "ARCHITECTURE.md": "Architecture",
    "CONTRIBUTING.md": "Contributing",
    "CHANGELOG.md": "Changes",
}
LINK = re.compile(r"(!?\[[^\]\n]*\]\()([^)\s]+)(\))")


def copied(inside):
    """Copies a file of the repository that is no page, such as config.toml, into the book; returns its path there."""
    place = "files/" + inside
    copy = OUT / "src" / place
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / inside, copy)
    return place


def copied_directory(inside):
    """Copies the files of a directory into the book with an index of them; returns the path of the index there."""
    files = sorted(path for path in (ROOT / inside).iterdir() if path.is_file())
    for path in files:
        copied(path.relative_to(ROOT).as_posix())
    items = "".join(f'<li><a href="{quote(path.name)}">{escape(path.name)}</a></li>\n' for path in files)
    title = escape(inside)
    index = f"files/{inside}/index.html"
    (OUT / "src" / index).write_text(
        f'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        f"<h1>{title}</h1>\n<ul>\n{items}</ul>\n</html>\n"
    )
    return index


def relinked(text, page):
    """The text of `page` (a path relative to the root) with its links as they are in the book's one directory."""

    def new(found):
        target, _, anchor = found[2].partition("#")
        if not target or urlsplit(target).scheme:
            return found[0]
        path = (ROOT / page).parent / target
        inside = path.resolve().relative_to(ROOT).as_posix()
        if inside in BESIDE:
            place = inside
        elif inside.startswith("docs/"):
            place = inside.removeprefix("docs/")
        elif path.is_file():
            place = copied(inside)
        elif path.is_dir():
            place = copied_directory(inside)
        else:
            sys.exit(f"{page}: broken link: {found[2]} is neither a file nor a directory of the repository")
        return found[1] + place + (f"#{anchor}" if anchor else "") + found[3]

    # Code blocks stay as they are.
    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else LINK.sub(new, part) for part in parts)


def stage():
    if OUT.exists():
        shutil.rmtree(OUT)
    source = OUT / "src"
    shutil.copytree(ROOT / "docs", source)
    pages = [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")] + list(BESIDE)
    for page in pages:
        text = (ROOT / page).read_text()
        (source / Path(page).name).write_text(relinked(text, page))
    summary = source / "SUMMARY.md"
    beside = "".join(f"- [{title}]({name})\n" for name, title in BESIDE.items())
    summary.write_text(f"{summary.read_text().rstrip()}\n\n# The project\n\n{beside}")
    config = (source / "book.toml").read_text()
    (source / "book.toml").unlink()
    (OUT / "book.toml").write_text(config.replace('src = "."', 'src = "src"'))


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.anchors, self.links = set(), []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors.update(filter(None, (attrs.get("id"), attrs.get("name"))))
        self.links.extend(filter(None, (attrs.get("href"), attrs.get("src"))))


def check():
    html = OUT / "html" if (OUT / "html").is_dir() else OUT / "book"
    pages = {}
    for path in html.rglob("*.html"):
        pages[path] = Page()
        pages[path].feed(path.read_text())
    broken, count = [], 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            count += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if path.name in ("404.html", "print.html", "toc.html"):
                # Pages that mdBook makes: the first has links from the root, the second repeats every page.
                continue
            if target.is_dir():
                target /= "index.html"
            found = target.is_file() and (
                not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].anchors
            )
            if not found:
                broken.append(f"{path.relative_to(html)}: {link}")
    if not pages or count < 100:
        sys.exit(f"{len(pages)} pages and {count} links were found in {html}")
    if broken:
        sys.exit("broken links:\n" + "\n".join(broken))
    print(f"{len(pages)} pages, {count} links")


def main():
    stage()
    subprocess.run(["mdbook", "build", str(OUT)], check=True)
    check()


if __name__ == "__main__":
    main()
