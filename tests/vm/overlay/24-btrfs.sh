# A dirty btrfs is mounted through an overlay: its log tree is replayed, and it is written to.
attach_lent btrfs
is_dirty btrfs
mount -t btrfs "$dev" /mnt
replayed
write_and_remount btrfs
btrfs check "$dev"
