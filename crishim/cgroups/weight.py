"""CPU shares of v1 as a weight of v2. Pure."""

from __future__ import annotations

import math


def weight_of_shares(shares: int) -> int:
    """cpu.weight (1..10000) for cpu.shares (2..262144; beyond is clipped).

    The curve goes through the three pairs that matter: 2 is 1, 1024 is 100 (both defaults), 262144 is 10000, so that
    containers keep their part against system services. Kubelets and runtimes since 2025 use the same curve.
    """
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    exponent = math.log2(shares)
    return math.ceil(10 ** ((exponent * exponent + 125 * exponent) / 612 - 7 / 34))
