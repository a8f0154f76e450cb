# cython: language_level=3, binding=False, boundscheck=False, wraparound=False
"""The functions of `capnp_layouts`, compiled: the same for the same arguments. See docs/protocol.md, "Layout".

What is usual is done here: exact `bytes`, `list` and `tuple`, canonical layouts, texts the wire may carry. Everything else, each
error included, is left to the function of the same name in `capnp_layouts`, which starts from the beginning.

Counts and lengths come from hostile peers. They are at most 32 bits wide where they are read and are kept in 64 bits, so that
nothing computed from them overflows, and no byte is read whose position has not been compared with the length of its `bytes`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_CheckExact
from cpython.tuple cimport PyTuple_CheckExact
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from tunnel_protocol import capnp_layouts

cdef enum:
    MAX_ENTRIES = 4096
    MAX_NAME_BYTES = 65535
    MAX_BODY_BYTES = 536870911
    USUAL_TEXT_WORDS = 1048576  # 8 MiB of names and values; the twin knows the limits of more
    PREFIX_BYTES = 40  # segment table, root, discriminant, payload pointer, list pointer
    ENTRIES_AT = 48  # behind the prefix and the tag of the list
    FIXED_BYTES = 24

# Root pointer, discriminant and payload pointer, as they stand behind the segment table.
cdef const uint8_t* HEADERS_WORDS = b"\0\0\0\0\1\0\1\0" b"\0\0\0\0\0\0\0\0" b"\0\0\0\0\0\0\1\0"
cdef const uint8_t* BODY_WORDS = b"\0\0\0\0\1\0\1\0" b"\1\0\0\0\0\0\0\0" b"\0\0\0\0\0\0\1\0"

cdef uint8_t[256] IN_LOWER_CASE_NAMES
memset(IN_LOWER_CASE_NAMES, 0, 256)
cdef uint8_t character
for character in b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz":
    IN_LOWER_CASE_NAMES[character] = 1


# --- headers and trailers -----------------------------------------------------------------------------------------------


def encode_map(uint32_t discriminant, entries, /):
    cdef int64_t words = usual_text_words(entries)
    if words < 0:
        return capnp_layouts.encode_map(discriminant, entries)
    return written_map(discriminant, <list>entries, words)


cdef int64_t usual_text_words(entries) except -2:
    """Words that names and values take, each with its NUL; -1 if anything about the entries is unusual."""
    cdef int64_t words = 0
    if not PyList_CheckExact(entries) or len(<list>entries) > MAX_ENTRIES:
        return -1
    for entry in <list>entries:
        if not PyTuple_CheckExact(entry) or len(<tuple>entry) != 2:
            return -1
        name, value = (<tuple>entry)[0], (<tuple>entry)[1]
        if not PyBytes_CheckExact(name) or not PyBytes_CheckExact(value):
            return -1
        words += (PyBytes_GET_SIZE(name) >> 3) + (PyBytes_GET_SIZE(value) >> 3) + 2
        if words > USUAL_TEXT_WORDS or not is_value(start_of(value), PyBytes_GET_SIZE(value)):
            return -1
    return words


cdef bytes written_map(uint32_t discriminant, list entries, int64_t text_words):
    """The message. The entries have been found usual, and no code of Python, which could change the list, has run since."""
    cdef uint32_t count = <uint32_t>len(entries)
    cdef int64_t words = 5 + 2 * <int64_t>count + text_words
    message = PyBytes_FromStringAndSize(NULL, 8 + 8 * words)
    cdef uint8_t* start = <uint8_t*>PyBytes_AS_STRING(message)
    write_u32(start, 0)
    write_u32(start + 4, <uint32_t>words)
    memcpy(start + 8, HEADERS_WORDS, FIXED_BYTES)
    write_u32(start + 16, discriminant)
    write_list_pointer(start + 32, 0, 7, 2 * count)
    write_u32(start + 40, count << 2)
    write_u32(start + 44, 2 << 16)
    cdef uint8_t* pointer = start + ENTRIES_AT
    cdef uint8_t* text = pointer + 16 * <int64_t>count
    for entry in entries:
        text = write_text(pointer, text, (<tuple>entry)[0])
        text = write_text(pointer + 8, text, (<tuple>entry)[1])
        pointer += 16
    return message


cdef inline uint8_t* write_text(uint8_t* pointer, uint8_t* at, text) noexcept:
    """The text, with its NUL and zeros up to the word, and its pointer; returns where the next text starts."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text)
    cdef uint8_t* last_word = at + (size >> 3 << 3)
    write_list_pointer(pointer, <uint32_t>((at - pointer - 8) >> 3), 2, <uint32_t>(size + 1))
    memset(last_word, 0, 8)
    memcpy(at, start_of(text), size)
    return last_word + 8


def canonical_entries(data, /):
    if PyBytes_CheckExact(data):
        if PyBytes_GET_SIZE(data) < ENTRIES_AT or memcmp(start_of(data) + 8, HEADERS_WORDS, FIXED_BYTES):
            return None
        entries = usual_entries(start_of(data), PyBytes_GET_SIZE(data))
        if entries is not None:
            return entries
    return capnp_layouts.canonical_entries(data)


cdef list usual_entries(const uint8_t* start, int64_t size):
    """Entries of the message in these at least `ENTRIES_AT` bytes; None if anything but its three fixed words is unusual."""
    cdef uint32_t tag = read_u32(start + 40)
    cdef int64_t count = tag >> 2
    cdef int64_t pointer = ENTRIES_AT
    cdef int64_t position = ENTRIES_AT + 16 * count  # of the next text: they follow each other without gaps
    cdef int64_t name_at, name_size, value_size, all_names = 0
    if read_u32(start) or size != 8 + 8 * <int64_t>read_u32(start + 4) or position > size or count > MAX_ENTRIES:
        return None
    if read_u32(start + 32) != 1 or read_u32(start + 36) != (count << 4 | 7) or tag & 3 or read_u32(start + 44) != 2 << 16:
        return None
    entries = []
    while pointer < ENTRIES_AT + 16 * count:
        name_at = position
        name_size = text_size(start, size, pointer, position)
        all_names += name_size
        if name_size < 0 or all_names > MAX_NAME_BYTES or not is_lower_case_name(start + position, name_size):
            return None
        position += (name_size >> 3 << 3) + 8
        value_size = text_size(start, size, pointer + 8, position)
        if value_size < 0 or not is_value(start + position, value_size):
            return None
        entries.append((bytes_of(start + name_at, name_size), bytes_of(start + position, value_size)))
        position += (value_size >> 3 << 3) + 8
        pointer += 16
    return entries


cdef inline int64_t text_size(const uint8_t* start, int64_t size, int64_t pointer, int64_t position) noexcept nogil:
    """Length of the text at `position` if `pointer`, which lies before it, points there and a NUL ends it; else -1."""
    cdef uint32_t kind = read_u32(start + pointer + 4)
    cdef int64_t length = <int64_t>(kind >> 3) - 1
    if read_u32(start + pointer) != <uint64_t>((position - pointer - 8) >> 3 << 2 | 1) or kind & 7 != 2:
        return -1
    if length < 0 or length >= size - position or start[position + length]:
        return -1
    return length


# --- bodies -------------------------------------------------------------------------------------------------------------


def encode_body(content, /):
    if not PyBytes_CheckExact(content) or PyBytes_GET_SIZE(content) > MAX_BODY_BYTES:
        return capnp_layouts.encode_body(content)
    cdef int64_t size = PyBytes_GET_SIZE(content)
    cdef int64_t padded = padded_size(size)
    message = PyBytes_FromStringAndSize(NULL, PREFIX_BYTES + padded)
    cdef uint8_t* start = <uint8_t*>PyBytes_AS_STRING(message)
    write_u32(start, 0)
    write_u32(start + 4, <uint32_t>(4 + (padded >> 3)))
    memcpy(start + 8, BODY_WORDS, FIXED_BYTES)
    write_list_pointer(start + 32, 0, 2, <uint32_t>size)
    memcpy(start + PREFIX_BYTES, start_of(content), size)
    memset(start + PREFIX_BYTES + size, 0, padded - size)
    return message


def canonical_body_size(buffer, Py_ssize_t offset, /):
    if PyBytes_CheckExact(buffer) and 0 <= offset <= PyBytes_GET_SIZE(buffer) - PREFIX_BYTES:
        return body_size(start_of(buffer) + offset)
    return capnp_layouts.canonical_body_size(buffer, offset)


def cut_bodies(reader, data, Py_ssize_t offset, /):
    cdef int64_t length, end
    if not PyBytes_CheckExact(data) or offset < 0:
        return capnp_layouts.cut_bodies(reader, data, offset)
    cdef const uint8_t* start = start_of(data)  # `data` cannot change and is the caller's as long as this runs
    cdef int64_t size = PyBytes_GET_SIZE(data)
    while size - offset > PREFIX_BYTES:
        on_body = reader.on_body
        if on_body is None:
            break
        length = body_size(start + offset)
        end = offset + PREFIX_BYTES + padded_size(length)
        if length <= 0 or end > size:
            break
        on_body(bytes_of(start + offset + PREFIX_BYTES, length))
        offset = end
    return offset


cdef inline int64_t body_size(const uint8_t* at) noexcept nogil:
    """Content length if these 40 bytes are the prefix of a canonical body message, else -1."""
    cdef uint32_t kind = read_u32(at + 36)
    cdef int64_t size = kind >> 3
    if read_u32(at) or read_u32(at + 4) != 4 + (padded_size(size) >> 3) or memcmp(at + 8, BODY_WORDS, FIXED_BYTES):
        return -1
    if read_u32(at + 32) != 1 or kind & 7 != 2:
        return -1
    return size


# --- bytes and what they mean -------------------------------------------------------------------------------------------


cdef inline const uint8_t* start_of(text) noexcept:
    """Where the bytes of an exact `bytes` lie, as long as it lives."""
    return <const uint8_t*>PyBytes_AS_STRING(text)


cdef inline bytes bytes_of(const uint8_t* start, Py_ssize_t size):
    return PyBytes_FromStringAndSize(<char*>start, size)


cdef inline int64_t padded_size(int64_t size) noexcept nogil:
    """`size` rounded up to words."""
    return (size + 7) >> 3 << 3


cdef inline bint is_value(const uint8_t* text, Py_ssize_t size) noexcept nogil:
    """Whether it holds nothing but printable ASCII and tabs."""
    cdef uint64_t word, low
    cdef Py_ssize_t at = 0
    # Eight at a time, as long as there is no tab. The sums of one byte do not reach the next: 0x7f + 0x60 is below 0x100.
    while at + 8 <= size:
        memcpy(&word, text + at, 8)
        low = word & 0x7F7F7F7F7F7F7F7FULL
        # The highest bit of a byte tells: above 0x7f, 0x7f itself, or below 0x20.
        if (word | (low + 0x0101010101010101ULL) | ~(low + 0x6060606060606060ULL)) & 0x8080808080808080ULL:
            break
        at += 8
    while at < size:
        if (text[at] < 0x20 and text[at] != 0x09) or text[at] > 0x7E:
            return False
        at += 1
    return True


cdef inline bint is_lower_case_name(const uint8_t* text, Py_ssize_t size) noexcept nogil:
    """Whether it is an HTTP token without capitals."""
    cdef Py_ssize_t at
    for at in range(size):
        if not IN_LOWER_CASE_NAMES[text[at]]:
            return False
    return size > 0


cdef inline uint32_t read_u32(const uint8_t* at) noexcept nogil:
    return at[0] | <uint32_t>at[1] << 8 | <uint32_t>at[2] << 16 | <uint32_t>at[3] << 24


cdef inline void write_u32(uint8_t* at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>value
    at[1] = <uint8_t>(value >> 8)
    at[2] = <uint8_t>(value >> 16)
    at[3] = <uint8_t>(value >> 24)


cdef inline void write_list_pointer(uint8_t* at, uint32_t distance, uint32_t kind, uint32_t size) noexcept nogil:
    """`distance` in words from the word behind the pointer; `size` in elements, or in words if `kind` is 7."""
    write_u32(at, distance << 2 | 1)
    write_u32(at + 4, size << 3 | kind)
