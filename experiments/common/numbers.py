"""Numbers as text, the same in tables, figures and pages."""

import re


def exponents(text: str) -> str:
    """Return text with exponents as people write them: 1e-5 and 1e7, not 1e-05 and 1e+07."""
    return re.sub(r"(?<=\d)e([-+])0*(?=\d)", lambda found: "e" + found[1].strip("+"), text)


def number(value: float, digits: int = 3) -> str:
    """Return a result with so many digits: 0.0123, 1.2e-5, 1.2e7."""
    return exponents(f"{value:.{digits}g}")
