# A file system is made, written, unmounted, read again, and sound.
login "$rw_iqn"
mke2fs -q -t ext4 -F "$dev"
mount -t ext4 "$dev" /mnt
dd if=/dev/urandom of=/mnt/file bs=1M count=8
sum=$(sha256sum </mnt/file)
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 -o discard "$dev" /mnt
[ "$(sha256sum </mnt/file)" = "$sum" ]
umount /mnt
e2fsck -f -n "$dev"
blockdev --flushbufs "$dev"
tell rw_sha256 "$(dd if="$dev" bs=1M iflag=direct | sha256sum | cut -d ' ' -f 1)"
