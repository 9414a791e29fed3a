# Random reads and writes at depth 32 are what was written.
login "$io_iqn"
verify "$dev" --size=16M
