"""Locations, buckets and combined checksums: round trips, and what is refused."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3hashsync.codec.crc import combined_crc32
from s3hashsync.codec.location import decode_buckets, decode_location, encode_buckets, encode_location
from s3hashsync.core.model import Location, ObjectAt, PackAt
from s3hashsync.errors import Corrupt

numbers = st.integers(min_value=0, max_value=2**50)
locations = st.one_of(
    st.builds(ObjectAt, st.text()),
    st.builds(PackAt, st.text(), st.text(), numbers, numbers, numbers),
)
hex_digits = "0123456789abcdef"
prefixes = st.text(alphabet=hex_digits, max_size=4) | st.text(alphabet=hex_digits, max_size=64)


@given(locations)
def test_location_round_trips(location: Location) -> None:
    assert decode_location(encode_location(location)) == location


def test_location_is_what_the_manual_says() -> None:
    assert encode_location(ObjectAt("3HL4kqtJvjVBH40Nrjfkd")) == "1o:3HL4kqtJvjVBH40Nrjfkd"
    assert encode_location(PackAt("ab12", "v.1_-", 0, 1048600, 512)) == "1p:ab12:v.1_-:0:1048600:512"
    assert encode_location(ObjectAt("a:b%")) == "1o:a%3Ab%25"


@pytest.mark.parametrize("text", ["", "1o", "2o:v", "1l:a:b", "1p:a:b:1:2", "1p:a:b:1:2:-3", "1p:a:b:1:2:x", "1p:a:b:1:2:3:4"])
def test_unknown_location_is_corrupt(text: str) -> None:
    with pytest.raises(Corrupt):
        decode_location(text)


@given(st.frozensets(prefixes, max_size=300))
def test_buckets_round_trip(buckets: frozenset[str]) -> None:
    assert decode_buckets(encode_buckets(buckets)) == buckets


def test_buckets_are_compact() -> None:
    assert encode_buckets(frozenset()) == b""
    assert encode_buckets(frozenset({"0", "f"})) == bytes([1, 0x80, 0x01])
    every = frozenset(f"{n:03x}" for n in range(4096))
    assert len(encode_buckets(every)) == 1 + 512


@pytest.mark.parametrize("data", [b"\x01", b"\x01\x00", b"\x82\x00\x00\x00", b"\x82\x00\x00\x00\x02\x01"])
def test_short_buckets_are_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_buckets(data)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_combined_crc_is_the_crc_of_the_whole(first: bytes, second: bytes) -> None:
    assert combined_crc32(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)
