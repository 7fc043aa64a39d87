"""The built-in model's corpus: public-domain texts out of Debian packages, one document per paragraph.

Usage: corpus.py OUT.txt      (needs the packages bible-kjv, bible-kjv-text and dict-devil)
"""

import gzip
import re
import subprocess
import sys


def bible() -> list[str]:
    """Chapters of the King James Version (1611), verse numbers left out."""
    out = subprocess.run(
        ["bible", "-f", "ge1:1-re22:21"], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    chapters: dict[str, list[str]] = {}
    for line in out.stdout.splitlines():
        reference, _, verse = line.partition(" ")
        if re.fullmatch(r"\w+:\d+", reference) and verse:
            chapters.setdefault(reference.split(":")[0], []).append(verse.strip())
    return [" ".join(verses) for verses in chapters.values()]


def dictionary() -> list[str]:
    """Entries of The Devil's Dictionary (Bierce, 1911)."""
    text = gzip.open("/usr/share/dictd/devil.dict.dz", "rt", encoding="utf-8", errors="replace").read()
    text = text[text.index("ABASEMENT, n.") :]
    entries = re.split(r"\n(?=[A-Z][A-Z' -]+, (?:n|v|adj|adv|pp|x|interj|prep)\b)", text)
    return [re.sub(r"\s+", " ", entry).strip() for entry in entries if entry.strip()]


def main() -> None:
    documents = bible() + dictionary()
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        out.write("\n\n".join(documents) + "\n")
    print(f"{len(documents)} documents, {sum(len(d.encode()) for d in documents)} bytes")


if __name__ == "__main__":
    main()
