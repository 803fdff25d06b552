"""Ways of measuring worst-case failure, one file each."""

from testbed.evaluation import estimate, exact, report

__all__ = ["estimate", "exact", "report"]
