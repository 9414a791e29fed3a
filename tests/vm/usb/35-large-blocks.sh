# A disk with blocks of 4096 bytes has the same at the other end.
controller super
serve --writable /dev/vda
wait_for 60 has_usb 1
disk=$(usb_disks)
[ "$(cat /sys/block/$disk/queue/logical_block_size)" = 4096 ]
[ "$(blockdev --getsize64 /dev/$disk)" = $((8 << 20)) ]
[ "$(hash /dev/$disk)" = "$(hash /dev/vda)" ]
mke2fs -q -t ext4 /dev/$disk
mount /dev/$disk /mnt
verify /mnt/file --size=2m
umount /mnt
stop
e2fsck -fn /dev/vda
