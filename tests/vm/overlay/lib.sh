# What the tests of overlays share: the disks by their file systems.

# local_disk SERIAL: the disk of this machine with that serial number.
local_disk() {
    for path in /sys/block/vd*; do
        if [ "$(cat "$path/serial")" = "$1" ]; then
            echo "/dev/${path##*/}"
            return 0
        fi
    done
    return 1
}

# lent TYPE: the lent disk with a file system of this type.
lent() {
    for disk in $(disks); do
        if [ "$(blkid -p -o value -s TYPE "/dev/$disk")" = "$1" ]; then
            echo "/dev/$disk"
            return 0
        fi
    done
    return 1
}

# attach_lent TYPE [OPTION...]: attaches all disks, and sets dev to that with the file system.
attach_lent() {
    type=$1
    shift
    nvme connect-all -t tcp -a "$address" -s "$port" "$@"
    wait_for 60 lent "$type"
    dev=$(lent "$type")
    udev_settle
}

# is_dirty TYPE: the file system cannot even be mounted read-only where nothing can be written.
is_dirty() {
    blockdev --setro "$dev"
    refused mount -t "$1" -o ro "$dev" /mnt
    blockdev --setrw "$dev"
}

# replayed: the mounted file system has what was written last before the loss of power.
replayed() {
    [ "$(cat /mnt/late)" = "written last" ]
    (cd /mnt && sha256sum -c /mnt/sums)
}

# write_and_remount TYPE: it is written to, and has that after it was mounted anew.
write_and_remount() {
    rm /mnt/file
    head -c 3000000 /dev/urandom >/mnt/new
    sum=$(sha256sum </mnt/new)
    umount /mnt
    mount -t "$1" "$dev" /mnt
    [ "$(sha256sum </mnt/new)" = "$sum" ]
    [ ! -e /mnt/file ]
    umount /mnt
}
