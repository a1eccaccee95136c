"""Small channels for the tests of what is found in them."""


def csv_text(rows, header="query,title,label"):
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def judged(count, first=0, labels=(1, 0)):
    """Rows of pairs, two a query."""
    return [(f"query {row // 2}", f"title {row}", labels[row % len(labels)]) for row in range(first, first + count)]


def write(folder, **files):
    """Write files into a folder and return it: `pairs_csv` is pairs.csv, and a list of rows is written as csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(csv_text(content) if isinstance(content, list) else content)
    return folder
