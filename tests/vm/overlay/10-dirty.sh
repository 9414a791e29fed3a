# Three file systems are written to and their images copied while they are mounted, as after a loss of power.
for type in ext4 xfs btrfs; do
    disk=$(local_disk "$type")
    case $type in
        ext4) mke2fs -q -F -t ext4 "$disk" ;;
        *) "mkfs.$type" -q -f "$disk" ;;
    esac
    mkdir -p "/tmp/$type"
    mount -t "$type" "$disk" "/tmp/$type"
    cd "/tmp/$type"
    head -c 2000000 /dev/urandom >file
    sha256sum file >sums
    sync
    echo "written last" | dd of=late conv=fsync
    cd /
done
ask copy
wait_for 60 nvme discover -t tcp -a "$address" -s "$port"
umount /tmp/ext4 /tmp/xfs /tmp/btrfs
# The copy has the same UUID.
btrfs device scan --forget
