"""Marks that several test files share."""

import pytest

#: For tests whose programs take seconds to compile: double precision is left to the whole suite.
DOUBLE_IS_SLOW = pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)], indirect=True
)
