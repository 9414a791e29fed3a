# Blocks are given back and zeroed; what is zeroed reads as zeros, what lies beside it stays.
attach "$rw_nqn" "$rw_line"
dd if=/dev/urandom of=/tmp/data bs=1M count=4
dd if=/tmp/data of="$dev" bs=1M oflag=direct
blkdiscard -z -o 1M -l 1M "$dev"
fallocate -z -o 3M -l 64K "$dev"
[ "$(cat "/sys/block/$disk/queue/discard_max_bytes")" -gt 0 ]
blkdiscard -o 2M -l 1M "$dev"
echo 3 >/proc/sys/vm/drop_caches
piece() { dd if="$1" bs=64k skip="$2" count="$3" | sha256sum; }
[ "$(piece "$dev" 0 16)" = "$(piece /tmp/data 0 16)" ]
[ "$(piece "$dev" 16 16)" = "$(piece /dev/zero 0 16)" ]
[ "$(piece "$dev" 48 1)" = "$(piece /dev/zero 0 1)" ]
[ "$(piece "$dev" 49 15)" = "$(piece /tmp/data 49 15)" ]
