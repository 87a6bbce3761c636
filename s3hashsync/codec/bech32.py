"""Bech32 (BIP 173, without its limit of 90 characters): the text form of age's keys.

Decides nothing. Knows nothing of what is encoded; what may be a secret never appears in an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUES = {letter: value for value, letter in enumerate(_LETTERS)}
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM = 6


def encode(prefix: str, data: bytes) -> str:
    """In lower case, as the prefix must be."""
    values = list(_regroup(data, 8, 5))
    check = _polymod((*_expanded(prefix), *values, *(0,) * _CHECKSUM)) ^ 1
    values += [check >> 5 * (_CHECKSUM - 1 - at) & 31 for at in range(_CHECKSUM)]
    return prefix + "1" + "".join(_LETTERS[value] for value in values)


def decode(text: str) -> tuple[str, bytes]:
    """(prefix in lower case, data). `ValueError` says what is wrong, without the text."""
    if not text.isascii():
        raise ValueError("it has a letter that keys never have")
    if text not in (text.lower(), text.upper()):
        raise ValueError("it mixes upper and lower case")
    prefix, separator, rest = text.lower().rpartition("1")
    if not separator or not prefix or not all("!" <= letter <= "~" for letter in prefix):
        raise ValueError("it does not begin as a key does")
    if len(rest) < _CHECKSUM:
        raise ValueError("it is too short")
    if not all(letter in _VALUES for letter in rest):
        raise ValueError("it has a letter that keys never have")
    values = [_VALUES[letter] for letter in rest]
    if _polymod((*_expanded(prefix), *values)) != 1:
        raise ValueError("its checksum is wrong: it has a typing mistake, or a part is missing")
    data, tail = values[:-_CHECKSUM], len(values[:-_CHECKSUM]) * 5 % 8
    # What does not fill a byte must be less than a letter, and zero: one key has one text.
    if tail > 4 or (tail and data[-1] & ((1 << tail) - 1)):
        raise ValueError("its last letters are not those of whole bytes")
    return prefix, bytes(_regroup(data, 5, 8))[: len(data) * 5 // 8]


def _expanded(prefix: str) -> tuple[int, ...]:
    codes = prefix.encode("ascii")
    return (*(code >> 5 for code in codes), 0, *(code & 31 for code in codes))


def _polymod(values: Iterable[int]) -> int:
    state = 1
    for value in values:
        top = state >> 25
        state = (state & 0x1FFFFFF) << 5 ^ value
        for bit, term in enumerate(_GENERATOR):
            if top >> bit & 1:
                state ^= term
    return state


def _regroup(values: Iterable[int], old: int, new: int) -> Iterator[int]:
    """The same bits in groups of another size; the last one is filled up with zeros."""
    bits = held = 0
    for value in values:
        bits = (bits << old | value) & 0xFFF
        held += old
        while held >= new:
            held -= new
            yield bits >> held & ((1 << new) - 1)
    if held:
        yield bits << (new - held) & ((1 << new) - 1)
