# Only a host that may write does so, and what it has written encrypted is on the disk.
begin
key=$(tls_key 1)
bring tls "$key"
let_in --tls-key tls $compat
insert 1 "$key" "$rw_nqn"
attach "$rw_nqn" "$connect -n $rw_nqn" --tls
[ "$(blockdev --getro "$dev")" = 1 ]
refused dd if=/dev/zero of="$dev" bs=4k count=1 oflag=direct
nvme disconnect -n "$rw_nqn"
let_in --replace --writable
attach "$rw_nqn" "$connect -n $rw_nqn" --tls
[ "$(blockdev --getro "$dev")" = 0 ]
dd if=/dev/urandom of="$dev" bs=1M count=6 seek=3 oflag=direct conv=fsync
verify "$dev" --size=4M --offset=10M
echo 3 >/proc/sys/vm/drop_caches
tell rw_sha256 "$(dd if="$dev" bs=1M iflag=direct | sha256sum | cut -d ' ' -f 1)"
