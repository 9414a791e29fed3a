# What must be refused of a disk of 16 MiB that is lent read-only, whatever the client leaves out of what it should check.
import errno
import sys

import nbd

h = nbd.NBD()
h.connect_uri(sys.argv[1])
assert h.is_read_only()
h.set_strict_mode(0)
before = h.pread(1 << 20, 0)
calls = [
    ("pwrite", (bytes(512), 0)),
    ("pwrite", (bytes(1 << 20), 512, nbd.CMD_FLAG_FUA)),
    ("zero", (512, 0)),
    ("zero", (512, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)),
    ("trim", (512, 0)),
]
for name, arguments in calls:
    try:
        getattr(h, name)(*arguments)
    except nbd.Error as error:
        assert error.errnum in (errno.EPERM, errno.EINVAL), f"{name}: {error}"
    else:
        raise AssertionError(f"{name}{arguments[1:]} went well")
h.flush()
assert h.pread(1 << 20, 0) == before
