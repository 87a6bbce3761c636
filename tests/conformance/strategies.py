"""Items as they may really occur, with the oddest names: for round trips through an index."""

from __future__ import annotations

import base64

from hypothesis import strategies as st

from s3hashsync.core.model import (
    ContentHash,
    Control,
    Item,
    Location,
    ObjectAt,
    Overflow,
    PackAt,
    Record,
    RecordState,
    Rev,
    StoredName,
)

URL_READY = "ABCXYZabcxyz0189._~+/=-"
"""What a version may be made of: S3 promises URL-ready text and says no more."""

# A path has no NUL, and what is not UTF-8 was percent-encoded before it came here; all else happens.
name_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60)
names = st.builds(
    lambda source, path: StoredName(f"{source}/{path}"),
    st.sampled_from(["src", "laptop-docs", "ü"]),
    name_text,
)
hashes = st.binary(min_size=32, max_size=32).map(ContentHash)
revs = st.binary(min_size=12, max_size=12).map(Rev)
versions = st.one_of(
    st.binary(min_size=16, max_size=16).map(bytes.hex),
    st.text(URL_READY, min_size=1, max_size=80),
    st.sampled_from(["null", "00", "0A", "a" * 1024]),
)
pack_ids = st.binary(min_size=16, max_size=16).map(bytes.hex)
bytes_count = st.integers(0, 2**53)
hex_digits = "0123456789abcdef"

locations: st.SearchStrategy[Location] = st.one_of(
    st.builds(ObjectAt, version=versions),
    st.builds(
        PackAt,
        pack=pack_ids,
        version=versions,
        frame_offset=bytes_count,
        frame_length=bytes_count,
        offset=bytes_count,
    ),
)


def _checksum(algorithm: str, size: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=size, max_size=size).map(lambda raw: f"{algorithm}:{base64.b64encode(raw).decode()}")


checksums = st.one_of(
    _checksum("sha256", 32),
    _checksum("crc64nvme", 8),
    _checksum("crc32", 4),
    st.sampled_from(["", "sha256:", "sha256:not base64"]),
)
storage_classes = st.sampled_from(["STANDARD", "DEEP_ARCHIVE", "GLACIER", "GLACIER_IR", "STANDARD_IA", "SNOW_2031", ""])
encodings = st.sampled_from(["zstd", "zstd+age:1", "zstd+age:4711"])


@st.composite
def records(draw: st.DrawFn) -> Record:
    state = draw(st.sampled_from(RecordState))
    if state is RecordState.GONE:
        return Record(draw(hashes), state, draw(revs))
    spill = draw(st.integers(0, 4))
    bucket = st.text(hex_digits, min_size=1, max_size=max(spill, 1))
    return Record(
        hash=draw(hashes),
        state=state,
        rev=draw(revs),
        names=draw(st.frozensets(names, max_size=8)),
        expiration=draw(bytes_count),
        size=draw(bytes_count),
        stored=draw(bytes_count),
        stored_at=draw(bytes_count),
        storage_class=draw(storage_classes),
        checksum=draw(checksums),
        encoding=draw(encodings),
        location=draw(locations),
        spill=spill,
        buckets=draw(st.frozensets(bucket, max_size=20)) if spill else frozenset(),
    )


overflows = st.builds(
    Overflow,
    hash=hashes,
    prefix=st.text(hex_digits, min_size=1, max_size=4),
    rev=revs,
    names=st.frozensets(names, max_size=8),
)

# "rev", "hash" and "key" are what an adapter may call its own attributes: a field must not collide with them.
field_names = st.one_of(
    st.sampled_from(["rev", "hash", "key", "state", "fields", "host"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20),
)
field_values = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
controls = st.builds(
    Control,
    key=st.one_of(
        st.just("repository"),
        name_text.map(lambda name: f"source:{name}"),
        pack_ids.map(lambda pack: f"pack:{pack}"),
    ),
    rev=revs,
    # In the order of their names: an index need not keep another order.
    fields=st.dictionaries(field_names, field_values, max_size=6).map(lambda fields: tuple(sorted(fields.items()))),
    data=st.binary(max_size=400),
)

items: st.SearchStrategy[Item] = st.one_of(records(), overflows, controls)
