# The file system on a disk of another machine is mounted by mount(8) and systemd, written to, and read again.
lent --open --listen 192.168.50.1
storagetm attach 192.168.50.1/vdb
mke2fs -q -F -t ext4 "/dev/$(disk_of "$rw_nqn")"
storagetm detach --all
mount -t storage.ext4 storagetm:192.168.50.1/vdb /mnt
grep ' /mnt ext4 rw' /proc/mounts
echo word >/mnt/file
umount /mnt
[ "$(count_disks)" = 1 ]
# It is attached already, and used as it is.
mount -t storage.ext4 -o ro storagetm:192.168.50.1/vdb /mnt
grep ' /mnt ext4 ro' /proc/mounts
[ "$(cat /mnt/file)" = word ]
[ "$(count_disks)" = 1 ]
umount /mnt
storagetm detach --all
