# All disks of a machine are attached at once; one that is mounted stays until it is not, or must go.
lent --open --listen 192.168.50.1
refused storagetm attach 192.168.50.1
storagetm attach 192.168.50.1 --all
[ "$(count_disks)" = 2 ]
disk=$(disk_of "$rw_nqn")
mke2fs -q -F -t ext4 "/dev/$disk"
mount "/dev/$disk" /mnt
echo word >/mnt/file
sync
refused storagetm detach 192.168.50.1 >/tmp/said 2>&1
cat /tmp/said
grep "/dev/$disk is in use: .*/mnt" /tmp/said
[ "$(count_disks)" = 2 ]
[ "$(cat /mnt/file)" = word ]
umount /mnt
storagetm detach 192.168.50.1
[ "$(count_disks)" = 0 ]
