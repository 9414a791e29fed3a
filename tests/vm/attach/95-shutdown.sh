# The target ends in good order while the host is attached: the host loses it, and what was written
# and flushed before is in the image.
attach "$ro_nqn" "$ro_line"
attach "$rw_nqn" "$rw_line" --reconnect-delay=1
dd if=/dev/urandom of="$dev" bs=1M count=8 conv=fsync
echo 3 >/proc/sys/vm/drop_caches
tell rw_sha256 "$(dd if="$dev" bs=1M | sha256sum | cut -d' ' -f1)"
ask terminate
wait_for 20 not_live "$rw_nqn"
wait_for 20 not_live "$ro_nqn"
