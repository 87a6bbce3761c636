"""The CRC-32 of a whole from the CRC-32s of its parts.

Decides nothing but arithmetic: parts of an upload are checked one by one and may be sent twice, and the
checksum over the whole object comes without reading any byte again. Knows nothing of uploads. Polynomials
are reflected: the highest bit is x^0, as zlib has it.
"""

from __future__ import annotations

from functools import cache

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31


def combined_crc32(first: int, second: int, second_size: int) -> int:
    """The CRC-32 of A + B from those of A and B and the size of B in bytes."""
    return _times(_power_of_x(second_size * 8), first) ^ second


@cache
def _power_of_x(exponent: int) -> int:
    """x^exponent modulo the polynomial. Parts have few sizes, so it is kept."""
    result, square = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            result = _times(result, square)
        square = _times(square, square)
        exponent >>= 1
    return result


def _times(a: int, b: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product
