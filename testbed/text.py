"""Text that people read."""


def plural(number: int, what: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number} {what}{'s' * (number != 1)}"
