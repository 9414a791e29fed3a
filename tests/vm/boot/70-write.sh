# Writes to the one disk that lets it, and tells the checksum of that disk then.
for disk in $(disks); do
    if [ "$(blockdev --getro "/dev/$disk")" = 0 ]; then dev=/dev/$disk; fi
done
dd if=/dev/urandom of="$dev" bs=1M count=3 seek=2 oflag=direct conv=fsync
echo 3 >/proc/sys/vm/drop_caches
tell sum "$(sha256sum <"$dev" | cut -d ' ' -f 1)"
