# What libnbd's own program tells of a writable disk of 16 MiB with a byte pattern in its first MiB, and the rest a hole.
import errno
import sys

import nbd

MIB = 1 << 20
uri = sys.argv[1]


def extents(h, offset, length, flags=0):
    found = []

    def told(name, at, entries, error):
        assert name == nbd.CONTEXT_BASE_ALLOCATION and at == offset
        found.extend(zip(entries[::2], entries[1::2]))

    h.block_status(length, offset, told, flags)
    return found


def refused(number, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except nbd.Error as error:
        assert error.errnum == number, f"{error}, not {errno.errorcode[number]}"
    else:
        raise AssertionError(f"{call.__name__}{arguments} went well")


h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(uri)
assert h.get_protocol() == "newstyle-fixed" and h.get_size() == 16 * MIB
assert h.get_structured_replies_negotiated() and not h.is_read_only()
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
assert h.can_multi_conn() and h.can_fast_zero() and h.can_df() and h.can_cache()
smallest = h.get_block_size(nbd.SIZE_MINIMUM)
assert smallest in (1, 512), smallest
assert h.get_block_size(nbd.SIZE_MAXIMUM) >= 32 * MIB

# Reading: whole, in chunks, and not to be fragmented.
assert h.pread(MIB, 0) == b"\x5a" * MIB
assert h.pread(512, 15 * MIB) == bytes(512)
pieces = []


def chunk(data, at, status, error):
    assert error.value == 0
    pieces.append((at, len(data), status))
    assert data == (bytes(len(data)) if at >= MIB else b"\x5a" * len(data))


h.pread_structured(2 * MIB, MIB // 2, chunk)
assert sum(size for _, size, _ in pieces) == 2 * MIB
pieces.clear()
h.pread_structured(MIB, MIB // 2, lambda *told: pieces.append(told[1:3]), nbd.CMD_FLAG_DF)
assert pieces == [(MIB // 2, nbd.READ_DATA)], pieces

# Where the holes are.
assert extents(h, 0, 16 * MIB) == [(MIB, 0), (15 * MIB, nbd.STATE_HOLE | nbd.STATE_ZERO)]
assert len(extents(h, 0, 16 * MIB, nbd.CMD_FLAG_REQ_ONE)) == 1
first = extents(h, MIB - 512, 1024, nbd.CMD_FLAG_REQ_ONE)
assert first == [(512, 0)], first

# Writing, with all that says when it must be safe.
h.pwrite(b"one" * 512, 2 * MIB)
h.pwrite(b"two" * 512, 2 * MIB + 1536, nbd.CMD_FLAG_FUA)
h.flush()
assert h.pread(3072, 2 * MIB) == b"one" * 512 + b"two" * 512
h.cache(MIB, 0)

# Zeros: with a hole, without one, quickly or not at all; and what is thrown away.
h.pwrite(b"\xff" * MIB, 4 * MIB)
h.zero(MIB // 2, 4 * MIB)
assert h.pread(MIB, 4 * MIB) == bytes(MIB // 2) + b"\xff" * (MIB // 2)
h.pwrite(b"\xff" * MIB, 5 * MIB)
h.zero(MIB, 5 * MIB, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(MIB, 5 * MIB) == bytes(MIB)
try:
    h.zero(MIB // 2, 4 * MIB + MIB // 2, nbd.CMD_FLAG_FAST_ZERO)
except nbd.Error as error:
    assert error.errnum == errno.ENOTSUP, error
    assert h.pread(1, 5 * MIB - 1) == b"\xff"
else:
    assert h.pread(MIB // 2, 4 * MIB + MIB // 2) == bytes(MIB // 2)
h.pwrite(b"\xff" * MIB, 6 * MIB)
h.trim(MIB, 6 * MIB)
assert extents(h, 6 * MIB, MIB) == [(MIB, nbd.STATE_HOLE | nbd.STATE_ZERO)]
h.zero(10 * MIB, 6 * MIB)
h.flush()

# Another connection reads what this one has written, after its flush or this one's.
other = nbd.NBD()
other.connect_uri(uri)
assert other.pread(1536, 2 * MIB) == b"one" * 512
other.pwrite(b"new" * 512, 2 * MIB)
h.flush()
assert h.pread(1536, 2 * MIB) == b"new" * 512
other.shutdown()

# Nothing of what is wrong ends the connection.
h.set_strict_mode(0)
refused(errno.EINVAL, h.pread, 1024, 16 * MIB - 512)
refused(errno.EINVAL, h.pread, 512, 1 << 62)
refused(errno.ENOSPC, h.pwrite, bytes(1024), 16 * MIB - 512)
refused(errno.ENOSPC, h.pwrite, bytes(512), 1 << 62)
for call in (h.trim, h.zero, h.cache):
    try:
        call(MIB, 16 * MIB)
    except nbd.Error as error:
        assert error.errnum in (errno.EINVAL, errno.ENOSPC), error
    else:
        raise AssertionError(f"{call.__name__} beyond the end went well")
refused(errno.EINVAL, h.pwrite, bytes(512), 0, 1 << 14)
refused(errno.EINVAL, h.pread, 512, 0, 1 << 14)
assert h.pread(4, 2 * MIB) == b"newn"
h.shutdown()
