# The same with header and data digests.
attach "$io_nqn" "$io_line" --hdr-digest --data-digest
verify "$dev" --size=16M
