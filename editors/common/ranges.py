"""Numbers of a configuration, checked where they are read: what is not in range is refused in one line."""

from __future__ import annotations

import math

from editors.common.errors import EditorError


def require_number(
    name: str, value: float, *, least: float | None = None, above: float | None = None, most: float = math.inf
) -> None:
    """Check that a number is finite and in range.

    Args:
        name: as in the configuration.
        value: of it.
        least: smallest that is allowed.
        above: what it has to be above.
        most: largest that is allowed.

    Raises:
        EditorError: it is not.

    >>> require_number("rank", 0, least=1)
    Traceback (most recent call last):
    editors.common.errors.EditorError: rank must be at least 1, got 0
    """
    inside = isinstance(value, int | float) and math.isfinite(value) and value <= most
    if inside and (least is None or value >= least) and (above is None or value > above):
        return
    bounds = [] if least is None else [f"at least {least}"]
    bounds += [] if above is None else [f"above {above}"]
    bounds += [] if math.isinf(most) else [f"at most {most}"]
    raise EditorError(f"{name} must be {' and '.join(bounds) or 'a finite number'}, got {value}")
