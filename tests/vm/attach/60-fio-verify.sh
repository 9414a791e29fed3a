# Random reads and writes at depth 32 are what was written.
attach "$io_nqn" "$io_line"
verify "$dev" --size=16M
