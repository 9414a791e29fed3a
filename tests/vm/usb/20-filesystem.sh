# A writable disk: partitions, a file system, verified data; the image has it all afterwards.
controller super
truncate -s 64M /tmp/rw.img
serve --writable /tmp/rw.img
wait_for 60 has_usb 1
dev=/dev/$(usb_disks)
[ "$(cat /sys/block/${dev##*/}/ro)" = 0 ]
printf 'label: gpt\nsize=48M\n' | sfdisk -q $dev
wait_for 20 [ -b ${dev}1 ]
mke2fs -q -t ext4 ${dev}1
mount ${dev}1 /mnt
verify /mnt/file --size=8m
fill /mnt/data 16
before=$(hash /mnt/data)
umount /mnt
blockdev --flushbufs $dev
mount -o ro ${dev}1 /mnt
[ "$(hash /mnt/data)" = "$before" ]
umount /mnt
here=$(hash $dev)
stop
[ "$(hash /tmp/rw.img)" = "$here" ]
e2fsck -fn "/tmp/rw.img?offset=1048576"
