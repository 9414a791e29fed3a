# Haggling before a disk is chosen: lists, information, what is not there, and going away.
import sys

import nbd

uri = sys.argv[1]


def haggle(name):
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.add_meta_context("example:unknown")
    h.connect_uri(uri)
    h.set_export_name(name)
    return h


def fails(call):
    try:
        call()
    except nbd.Error:
        return
    raise AssertionError("went well")


h = haggle("disk")
names = []
assert h.opt_list(lambda name, text: names.append(name)) == 1 and names == ["disk"]
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name))
assert contexts == ["base:allocation"], contexts
h.opt_info()
assert h.get_size() == 16 << 20
h.set_export_name("nothing of that name")
fails(h.opt_info)
fails(h.opt_go)
h.set_export_name("x" * 4096)
fails(h.opt_info)
# After all of that the right one is still to be had.
h.set_export_name("disk")
h.opt_go()
assert h.get_size() == 16 << 20 and h.can_meta_context("base:allocation")
assert not h.can_meta_context("example:unknown")
assert len(h.pread(512, 0)) == 512

h = haggle("")
h.opt_abort()

# A client that knows neither structured replies nor GO's information.
h = nbd.NBD()
h.set_request_structured_replies(False)
h.set_handshake_flags(0)
h.connect_uri(uri)
assert not h.get_structured_replies_negotiated() and h.get_protocol() == "newstyle"
assert h.pread(512, 1 << 20) == bytes(512)
