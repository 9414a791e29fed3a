# A dirty ext4 is mounted through an overlay: its journal is replayed, and it is written to.
attach_lent ext4
is_dirty ext4
mount -t ext4 "$dev" /mnt
dmesg | grep 'EXT4-fs.*recovery complete'
replayed
write_and_remount ext4
e2fsck -f -n "$dev"
