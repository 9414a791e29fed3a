# A second machine replays and writes the same disk at the same time: each sees its own contents.
attach_lent ext4
mount -t ext4 "$dev" /mnt
echo first >/mnt/which
sync
ask second
has_ended() { (: <>"/dev/tcp/$address/$ended_port"); }
wait_for 90 has_ended
echo 3 >/proc/sys/vm/drop_caches
[ "$(cat /mnt/which)" = first ]
umount /mnt
e2fsck -f -n "$dev"
