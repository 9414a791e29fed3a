# A dirty XFS is mounted through an overlay: its log is replayed, and it is written to.
attach_lent xfs
is_dirty xfs
mount -t xfs "$dev" /mnt
dmesg | grep 'XFS.*Ending recovery'
replayed
write_and_remount xfs
xfs_repair -n "$dev"
