"""How the report's templates are filled in and its files written."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from lorry.logs import duration

# Characters that would start Markdown or HTML markup, or end a table cell.
_ESCAPED = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|~&$"})


def render(template: str, **values: Any) -> str:
    """Fill in a template of this package; pages in HTML escape every value, Markdown uses the filter `markdown`."""
    environment = Environment(
        loader=PackageLoader("lorry.report"),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda number: f"{number:,.0f}",
        "score": lambda number: _minus(f"{number:.4f}"),
        "signed": signed,
        "percent": lambda share: f"{100 * share:.0f}%",
        "gigabytes": lambda number: f"{number / 1e9:.3g} GB",
        "dollars": lambda number: f"${number:.2f}" if number >= 0.1 else f"${number:.4f}",
        "duration": duration,
        "gib": lambda number: f"{number / 2**30:.2f} GiB",
        "option": _option,
        "markdown": lambda text: " ".join(str(text).translate(_ESCAPED).split()),
    }
    return environment.get_template(template).render(**values)


def signed(number: float) -> str:
    """Return a change in a metric with its sign, as in "+0.0123"."""
    return _minus(f"{number:+.4f}")


def _minus(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")


def _option(value: Any) -> str:
    """Return a hyperparameter as it is given on the command line."""
    if value in ("", None):
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)
