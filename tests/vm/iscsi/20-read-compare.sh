# A read-only disk has the right size and content, partitions, and refuses writes.
login "$ro_iqn"
[ "$(blockdev --getsize64 "$dev")" = "$ro_bytes" ]
[ "$(blockdev --getro "$dev")" = 1 ]
[ -b "${dev}1" ]
[ "$(dd if="$dev" bs=1M iflag=direct | sha256sum | cut -d ' ' -f 1)" = "$ro_sha256" ]
refused dd if=/dev/zero of="$dev" bs=4096 count=1 oflag=direct
