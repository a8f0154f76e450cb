# cython: boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=False
"""`packets.py` compiled: the same functions, byte for byte. Docstrings and sources of the rules are there.

Every read is preceded by a comparison with the length of its buffer: bytes come from peers. What is cut short or otherwise
unusual goes to the Python twin, which knows the errors.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from tunnel_protocol.quic import packets

cdef enum:
    HEADER_BYTES = 9
    SAMPLE_AT = 13
    SAMPLE_BYTES = 16
    NONCE_BYTES = 12
    TAG_BYTES = 16

if (packets.HEADER_BYTES, packets.SAMPLE_AT, packets.SAMPLE_BYTES) != (HEADER_BYTES, SAMPLE_AT, SAMPLE_BYTES):
    raise ImportError("packet_speedups was compiled for another layout of packets")

cdef int64_t LARGEST_OFFSET = (1 << 62) - 1


cdef inline Py_ssize_t pull(const uint8_t* data, Py_ssize_t at, Py_ssize_t size, uint64_t* value) noexcept:
    """Where the integer at `at` ends, with its value; -1 if it is cut short."""
    cdef uint8_t first
    cdef uint64_t found
    cdef Py_ssize_t end, i
    if at >= size:
        return -1
    first = data[at]
    end = at + (1 << (first >> 6))
    if end > size:
        return -1
    found = first & 0x3F
    for i in range(at + 1, end):
        found = found << 8 | data[i]
    value[0] = found
    return end


cdef inline Py_ssize_t put(uint8_t* data, uint64_t value) noexcept:
    """Writes an integer below 2^62 in as few bytes as it takes; how many that are."""
    cdef Py_ssize_t size, i
    if value < 0x40:
        data[0] = <uint8_t>value
        return 1
    if value < 0x4000:
        size = 2
        value |= 0x4000
    elif value < 0x40000000:
        size = 4
        value |= <uint64_t>0x80000000
    else:
        size = 8
        value |= <uint64_t>0xC000000000000000
    for i in range(size):
        data[i] = <uint8_t>(value >> (8 * (size - 1 - i)))
    return size


cdef bytes nonce(const uint8_t* iv, uint64_t number):
    """The IV with the packet number mixed in (RFC 9001 section 5.3)."""
    cdef bytes made = PyBytes_FromStringAndSize(<char*>iv, NONCE_BYTES)
    cdef uint8_t* raw = <uint8_t*>PyBytes_AS_STRING(made)
    cdef int i
    for i in range(8):
        raw[NONCE_BYTES - 1 - i] ^= <uint8_t>(number >> (8 * i))
    return made


cdef class Keys:
    """`packets.Keys` with the IV as bytes."""

    cdef readonly object aead
    cdef readonly object mask
    cdef readonly object iv
    cdef readonly object into
    cdef uint8_t iv_bytes[NONCE_BYTES]

    def __init__(self, aead, iv, mask, into=None):
        cdef bytes raw = iv.to_bytes(NONCE_BYTES, "big")
        self.aead, self.iv, self.mask, self.into = aead, iv, mask, into
        memcpy(self.iv_bytes, PyBytes_AS_STRING(raw), NONCE_BYTES)


def make_keys(aead, iv, mask, into=None):
    """See `packets.make_keys`."""
    return Keys(aead, iv, mask, into)


def open_packet(bytes data not None, Keys keys not None, int key_phase, uint64_t expected):
    """See `packets.open_packet`."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef const uint8_t* raw = <const uint8_t*>PyBytes_AS_STRING(data)
    cdef uint8_t header[HEADER_BYTES + 4]
    cdef const uint8_t* mask
    cdef bytes mask_bytes
    cdef uint64_t truncated = 0, window, number
    cdef int number_size, i
    cdef uint8_t first
    if size < SAMPLE_AT + SAMPLE_BYTES:
        raise ValueError("packet is too short")
    mask_bytes = keys.mask(PyBytes_FromStringAndSize(<char*>raw + SAMPLE_AT, SAMPLE_BYTES))
    if PyBytes_GET_SIZE(mask_bytes) < 5:
        raise ValueError("mask is too short")
    mask = <const uint8_t*>PyBytes_AS_STRING(mask_bytes)
    first = raw[0] ^ (mask[0] & 0x1F)
    if first & 0x18 or (first >> 2) & 1 != key_phase:
        return None
    number_size = (first & 3) + 1
    memcpy(header, raw, HEADER_BYTES)
    header[0] = first
    for i in range(number_size):
        header[HEADER_BYTES + i] = raw[HEADER_BYTES + i] ^ mask[1 + i]
        truncated = truncated << 8 | header[HEADER_BYTES + i]
    window = <uint64_t>1 << (8 * number_size)
    number = (expected & ~(window - 1)) | truncated
    if number + window // 2 <= expected and number + window < <uint64_t>1 << 62:
        number += window
    elif number > expected + window // 2 and number >= window:
        number -= window
    return number, keys.aead(
        nonce(keys.iv_bytes, number),
        PyBytes_FromStringAndSize(<char*>raw + HEADER_BYTES + number_size, size - HEADER_BYTES - number_size),
        PyBytes_FromStringAndSize(<char*>header, HEADER_BYTES + number_size),
    )


def seal_packet(int first, bytes peer_cid not None, uint64_t number, bytes payload not None, Keys keys not None):
    """See `packets.seal_packet`."""
    cdef Py_ssize_t cid_size = PyBytes_GET_SIZE(peer_cid)
    cdef bytes header = PyBytes_FromStringAndSize(NULL, cid_size + 3)
    cdef uint8_t* raw = <uint8_t*>PyBytes_AS_STRING(header)
    cdef bytes sealed, mask_bytes, packet
    cdef const uint8_t* mask
    cdef Py_ssize_t size
    raw[0] = <uint8_t>first
    memcpy(raw + 1, PyBytes_AS_STRING(peer_cid), cid_size)
    raw[cid_size + 1] = <uint8_t>(number >> 8)
    raw[cid_size + 2] = <uint8_t>number
    sealed = keys.aead(nonce(keys.iv_bytes, number), payload, header)
    size = PyBytes_GET_SIZE(sealed)
    if size < 18:
        raise ValueError("packet is too short to be protected")
    mask_bytes = keys.mask(PyBytes_FromStringAndSize(PyBytes_AS_STRING(sealed) + 2, SAMPLE_BYTES))
    if PyBytes_GET_SIZE(mask_bytes) < 5:
        raise ValueError("mask is too short")
    mask = <const uint8_t*>PyBytes_AS_STRING(mask_bytes)
    packet = PyBytes_FromStringAndSize(NULL, cid_size + 3 + size)
    raw = <uint8_t*>PyBytes_AS_STRING(packet)
    raw[0] = <uint8_t>first ^ (mask[0] & 0x1F)
    memcpy(raw + 1, PyBytes_AS_STRING(peer_cid), cid_size)
    raw[cid_size + 1] = <uint8_t>(number >> 8) ^ mask[1]
    raw[cid_size + 2] = <uint8_t>number ^ mask[2]
    memcpy(raw + cid_size + 3, PyBytes_AS_STRING(sealed), size)
    return packet


cdef const uint8_t* bytes_of(object data, Py_ssize_t stop) except NULL:
    """Where the bytes of `data` are, of which there are `stop` at least."""
    if type(data) is bytes and PyBytes_GET_SIZE(data) >= stop:
        return <const uint8_t*>PyBytes_AS_STRING(data)
    if type(data) is bytearray and PyByteArray_GET_SIZE(data) >= stop:
        return <const uint8_t*>PyByteArray_AS_STRING(data)
    raise ValueError("there are no such bytes")


def seal_run(
    int first,
    bytes peer_cid not None,
    uint64_t number,
    bytes id_bytes not None,
    uint64_t offset,
    data,
    Py_ssize_t start,
    Py_ssize_t stop,
    Py_ssize_t piece_bytes,
    bint fin,
    Keys keys not None,
):
    """See `packets.seal_run`."""
    cdef Py_ssize_t cid_size = PyBytes_GET_SIZE(peer_cid), id_size = PyBytes_GET_SIZE(id_bytes)
    cdef Py_ssize_t header_size = cid_size + 3, frame_size = id_size + 9, at = start, size, count, done
    cdef object into = keys.into
    cdef bytes run, samples, masks
    cdef object header, plain, sealed
    cdef uint8_t* raw
    cdef uint8_t* packet
    cdef uint8_t* frame
    cdef const uint8_t* mask
    cdef uint64_t told
    cdef int i
    if not 0 <= start < stop or piece_bytes <= 0 or id_size > 8 or offset + <uint64_t>(stop - start) > <uint64_t>LARGEST_OFFSET:
        raise ValueError("there are no such pieces")
    count = (stop - start + piece_bytes - 1) // piece_bytes
    run = PyBytes_FromStringAndSize(NULL, stop - start + count * (header_size + frame_size + TAG_BYTES))
    samples = PyBytes_FromStringAndSize(NULL, count * SAMPLE_BYTES)
    header = PyByteArray_FromStringAndSize(NULL, header_size)
    raw = <uint8_t*>PyByteArray_AS_STRING(header)
    raw[0] = <uint8_t>first
    memcpy(raw + 1, PyBytes_AS_STRING(peer_cid), cid_size)
    packet = <uint8_t*>PyBytes_AS_STRING(run)
    size = 0
    for done in range(count):
        if min(piece_bytes, stop - at) != size:  # the first, and a shorter last one
            size = min(piece_bytes, stop - at)
            plain = PyByteArray_FromStringAndSize(NULL, frame_size + size)
            sealed = PyByteArray_FromStringAndSize(NULL, frame_size + size + TAG_BYTES)
        raw = <uint8_t*>PyByteArray_AS_STRING(header)
        raw[cid_size + 1] = <uint8_t>(number >> 8)
        raw[cid_size + 2] = <uint8_t>number
        frame = <uint8_t*>PyByteArray_AS_STRING(plain)
        frame[0] = 0x0D if fin and done == count - 1 else 0x0C
        memcpy(frame + 1, PyBytes_AS_STRING(id_bytes), id_size)
        told = (offset + <uint64_t>(at - start)) | <uint64_t>0xC000000000000000
        for i in range(8):
            frame[1 + id_size + i] = <uint8_t>(told >> (56 - 8 * i))
        memcpy(frame + frame_size, bytes_of(data, stop) + at, size)
        into(nonce(keys.iv_bytes, number), plain, header, sealed)
        memcpy(packet, PyByteArray_AS_STRING(header), header_size)
        memcpy(packet + header_size, PyByteArray_AS_STRING(sealed), frame_size + size + TAG_BYTES)
        memcpy(PyBytes_AS_STRING(samples) + done * SAMPLE_BYTES, packet + header_size + 2, SAMPLE_BYTES)
        packet += header_size + frame_size + size + TAG_BYTES
        at += size
        number += 1
    masks = keys.mask(samples)
    if PyBytes_GET_SIZE(masks) < count * SAMPLE_BYTES:
        raise ValueError("masks are too short")
    packet = <uint8_t*>PyBytes_AS_STRING(run)
    for done in range(count):
        mask = <const uint8_t*>PyBytes_AS_STRING(masks) + done * SAMPLE_BYTES
        packet[0] ^= mask[0] & 0x1F
        packet[cid_size + 1] ^= mask[1]
        packet[cid_size + 2] ^= mask[2]
        packet += header_size + frame_size + piece_bytes + TAG_BYTES  # only the last may be shorter
    return run


def read_stream_frames(bytes payload not None, Py_ssize_t at, dict streams not None):
    """See `packets.read_stream_frames`."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(payload), data_at, end
    cdef const uint8_t* raw = <const uint8_t*>PyBytes_AS_STRING(payload)
    cdef uint64_t stream_id, offset, length
    cdef uint8_t kind
    cdef PyObject* found
    if at < 0:
        raise ValueError("position is negative")
    while at < size:
        kind = raw[at]
        if kind & 0xF8 != 0x08:
            return at
        offset = 0
        end = size
        data_at = pull(raw, at + 1, size, &stream_id)
        if data_at >= 0 and kind & 4:
            data_at = pull(raw, data_at, size, &offset)
        if data_at >= 0 and kind & 2:
            data_at = pull(raw, data_at, size, &length)
            if data_at < 0 or length > <uint64_t>(size - data_at):
                return at
            end = data_at + <Py_ssize_t>length
        if data_at < 0:
            return at
        found = PyDict_GetItem(streams, stream_id)
        if found is NULL:
            return at
        (<object>found).on_stream_frame(
            offset, PyBytes_FromStringAndSize(<char*>raw + data_at, end - data_at), kind & 1 == 1
        )
        at = end
    return at


def read_ack(bytes payload not None, Py_ssize_t at):
    """See `packets.read_ack`."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(payload)
    cdef const uint8_t* raw = <const uint8_t*>PyBytes_AS_STRING(payload)
    cdef uint64_t largest, delay, more, length, gap
    cdef int64_t low, high
    cdef Py_ssize_t end = at
    cdef list ranges
    if at < 0:
        raise ValueError("position is negative")
    end = pull(raw, end, size, &largest)
    if end >= 0:
        end = pull(raw, end, size, &delay)
    if end >= 0:
        end = pull(raw, end, size, &more)
    if end >= 0:
        end = pull(raw, end, size, &length)
    if end < 0:
        return packets.read_ack(payload, at)
    low = <int64_t>largest - <int64_t>length
    ranges = [(low, largest)]
    while more and low >= 0:
        end = pull(raw, end, size, &gap)
        if end >= 0:
            end = pull(raw, end, size, &length)
        if end < 0:
            return packets.read_ack(payload, at)
        # All are below 2^62: the differences fit.
        high = low - <int64_t>gap - 2
        low = high - <int64_t>length
        ranges.append((low, high))
        more -= 1
    return largest, delay, ranges, end


def stream_frame(bytes id_bytes not None, uint64_t offset, bytes data not None, bint fin):
    """See `packets.stream_frame`."""
    cdef Py_ssize_t id_size = PyBytes_GET_SIZE(id_bytes), size = PyBytes_GET_SIZE(data), at
    cdef uint8_t head[32]
    cdef bytes frame
    cdef uint8_t* raw
    if id_size > 8 or size >= 0x4000 or offset > <uint64_t>LARGEST_OFFSET:
        return packets.stream_frame(id_bytes, offset, data, fin)
    head[0] = 0x0A | (4 if offset else 0) | (1 if fin else 0)
    memcpy(head + 1, PyBytes_AS_STRING(id_bytes), id_size)
    at = 1 + id_size
    if offset:
        at += put(head + at, offset)
    head[at] = <uint8_t>(size >> 8) | 0x40
    head[at + 1] = <uint8_t>size
    at += 2
    frame = PyBytes_FromStringAndSize(NULL, at + size)
    raw = <uint8_t*>PyBytes_AS_STRING(frame)
    memcpy(raw, head, at)
    memcpy(raw + at, PyBytes_AS_STRING(data), size)
    return frame
