"""Matrices of Winograd's minimal filtering F(4, 5): four outputs of a five-tap filter from products at eight points.

The matrices follow from Toom-Cook interpolation of polynomials. Of twelve sets of points that were compared, `FINITE`
has the smallest rounding errors.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import prod

import numpy as np
from numpy.typing import NDArray

TILE, KERNEL = 4, 5
"""Number of outputs of a tile, and of taps of the filter, along one axis."""
POINTS = TILE + KERNEL - 1
FINITE = [Fraction(point) for point in ("0", "1", "-1", "2", "-2", "1/2", "-1/2")]
"""Interpolation points without the last one, the point at infinity."""

Matrix = NDArray[np.float64]


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """Return the coefficients of the product of all (x - root), lowest power first."""
    found = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *found]
        found = [higher - root * lower for higher, lower in zip(shifted, [*found, Fraction(0)], strict=True)]
    return found


def matrices() -> tuple[Matrix, Matrix, Matrix]:
    """Return the matrices that transform a tile of inputs, a filter, and their products.

    Returns:
        Input [8, 8], kernel [8, 5] and output [4, 8] matrix, such that
        `output @ ((kernel @ filter) * (input @ tile))` are the four correlations of tile and filter.
    """
    inputs, kernel, output = (np.zeros(shape) for shape in ((POINTS, POINTS), (POINTS, KERNEL), (TILE, POINTS)))
    for row, point in enumerate(FINITE):
        others = [one for one in FINITE if one != point]
        scale = prod((point - one for one in others), start=Fraction(1))
        inputs[row, : POINTS - 1] = [float(one) for one in _polynomial(others)]
        kernel[row] = [float(point**power / scale) for power in range(KERNEL)]
        output[:, row] = [float(point**power) for power in range(TILE)]
    inputs[-1] = [float(one) for one in _polynomial(FINITE)]
    kernel[-1, -1] = output[-1, -1] = 1
    return inputs, kernel, output


def of_tiles(side: int) -> Matrix:
    """Return the input transform of all tiles along an axis that is padded with zeros, [8, tiles, side]."""
    inputs, _, _ = matrices()
    found = np.zeros((POINTS, side // TILE, side))
    for tile in range(side // TILE):
        for place in range(POINTS):
            at = tile * TILE + place - KERNEL // 2
            if 0 <= at < side:
                found[:, tile, at] += inputs[:, place]
    return found
