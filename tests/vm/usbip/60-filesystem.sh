# A file system on the writable disk holds what was written to it.
usbip_attach super
mke2fs -q -t ext4 $writable
mount $writable /mnt
verify /mnt/file --size=8m
dd if=/dev/urandom of=/mnt/data bs=1M count=16
before=$(hash /mnt/data)
umount /mnt
usbip_detach
usbip_attach super
mount -o ro $writable /mnt
[ "$(hash /mnt/data)" = "$before" ]
umount /mnt
tell rw_sha256 "$(hash $writable)"
usbip_detach
