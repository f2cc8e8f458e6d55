"""Where the members of a tar file begin, read from its headers alone.

Python's tarfile takes five times as long, and it treats a damaged header as the end of the file.
"""

import os
import zlib
from collections.abc import Iterator

from selfsight.files import read_at

BLOCK = 512  # bytes: headers and contents begin at multiples of it
PADDING = 2**20  # bytes of zeros allowed at the end; tar never writes more, a damaged disk may
LONGEST_HEADER, MOST_HEADERS = 2**20, 16  # bytes of a description, and how many one member has
ADLER = 65521  # the modulus of Adler-32
REGULAR = (b"0", b"\0", b"7")
EMPTY = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices and folders have only a header
# Members that describe the next one: pax records, GNU's long names of files and links.
PAX, LONG_NAME, DESCRIPTIONS = b"x", b"L", (b"x", b"L", b"K", b"g")


def members(file: int) -> Iterator[tuple[bytes, int, int]]:
    """For each regular file in a tar: name, and offset and size of its content in bytes.

    Args:
        file: descriptor of an uncompressed tar in ustar, GNU or pax format.
    Raises: ValueError with the reason if the file is not a tar, is damaged or is cut short.
    """
    end, place, described, headers = os.fstat(file).st_size, 0, {}, 0
    while any(header := read_at(file, BLOCK, place)) or len(header) < BLOCK:
        name, size, kind = _parse(header, place)
        if kind not in DESCRIPTIONS:
            name = described.get(b"path", name)
            size = int(described.get(b"size", size))
            if kind == b"S" or any(key.startswith(b"GNU.sparse") for key in described):
                shown = name.decode(errors="replace")
                raise ValueError(f"'{shown}' is sparse; pack it without tar's --sparse")
        content = place + BLOCK
        place = content + (0 if kind in EMPTY else -(-size // BLOCK) * BLOCK)
        if place > end:
            raise ValueError(f"cut short: it ends within '{name.decode(errors='replace')}'")
        headers = headers + 1 if kind in DESCRIPTIONS else 0
        if headers and (headers > MOST_HEADERS or size > LONGEST_HEADER):
            raise ValueError(f"damaged: headers of one file are too many or too long at {place}")
        if kind == PAX:
            described |= _records(read_at(file, size, content))
        elif kind == LONG_NAME:
            described[b"path"] = read_at(file, size, content).partition(b"\0")[0]
        elif kind in REGULAR:
            yield name, content, size
        if kind not in DESCRIPTIONS:
            described = {}
    rest = read_at(file, PADDING + 1, place)
    if len(rest) > PADDING or any(rest):
        raise ValueError(f"damaged: data follows the end mark of a tar at byte {place:,}")


def _parse(header: bytes, place: int) -> tuple[bytes, int, bytes]:
    """Name, size in bytes and type of a member; the header's checksum is verified."""
    if len(header) < BLOCK:
        raise ValueError(f"cut short: no end mark of a tar at byte {place:,}")
    try:
        total, field = _octal(header[148:156]), header[124:136]
        size = int.from_bytes(field[1:]) if field[0] == 0x80 else _octal(field)
        # the sum of all bytes, with spaces for itself; Adler-32 has it in a tenth of the time
        found = (zlib.adler32(header) & 0xFFFF) - 1 - sum(header[148:156]) + 8 * ord(" ")
        whole = size >= 0 and (total - found) % ADLER == 0
    except ValueError:
        whole = False
    if not whole:
        reason = "damaged" if place else "not a tar, or a compressed one"
        raise ValueError(f"{reason}: no header at byte {place:,}")
    name, prefix = (field.partition(b"\0")[0] for field in (header[:100], header[345:500]))
    if prefix and header[257:263] == b"ustar\0":  # other formats use these bytes differently
        name = prefix + b"/" + name
    return name, size, header[156:157]


def _octal(field: bytes) -> int:
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _records(content: bytes) -> dict[bytes, bytes]:
    """Pax records "LENGTH KEY=VALUE\\n", where LENGTH counts the bytes of the whole record."""
    found, start = {}, 0
    while start < len(content):
        digits = content[start : start + 20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        if not len(digits) < length <= len(content) - start:
            raise ValueError("damaged: a pax header is not readable")
        record = content[start + len(digits) + 1 : start + length - 1]
        key, _, value = record.partition(b"=")
        if key == b"size" and not value.isdigit():
            raise ValueError("damaged: a pax header's size is not a number")
        found[key] = value
        start += length
    return found
