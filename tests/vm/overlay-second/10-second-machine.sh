# The second of two machines that use a disk with an overlay: it sees nothing of what the first has written.
uuid=0d7f3f0e-5a0b-4a52-9a3c-52d1c7f0b6a2
nvme connect-all -t tcp -a "$address" -s "$port" --hostnqn="nqn.2014-08.org.nvmexpress:uuid:$uuid" --hostid="$uuid"
has_ext4() {
    for disk in $(disks); do
        dev=/dev/$disk
        [ "$(blkid -p -o value -s TYPE "$dev")" != ext4 ] || return 0
    done
    return 1
}
wait_for 60 has_ext4
has_ext4
mount -t ext4 "$dev" /mnt
dmesg | grep 'EXT4-fs.*recovery complete'
[ "$(cat /mnt/late)" = "written last" ]
[ -e /mnt/file ]
[ ! -e /mnt/which ]
echo second >/mnt/which
umount /mnt
mount -t ext4 "$dev" /mnt
[ "$(cat /mnt/which)" = second ]
umount /mnt
e2fsck -f -n "$dev"
