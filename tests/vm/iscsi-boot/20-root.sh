# The system attaches the disk that it was started from by that table alone, and uses its root.
mkdir -p /var/lib/iscsi /run/lock/iscsi
iscsistart -b
has_root() { blkid -U "$root_uuid"; }
wait_for 60 has_root
mount -t ext4 "$(blkid -U "$root_uuid")" /mnt
[ "$(cat /mnt/greeting)" = "root of the lent disk" ]
echo "written by the system that booted from it" >/mnt/answer
umount /mnt
tell root written
