"""Short names for arrays."""

import numpy as np


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


def floats(*values) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)
