# What the tests of atomic writes share: a disk of the kernel that does them, and its server, whose
# initiators are on the same machine.
mkdir -p /run/lock/iscsi /var/lib/iscsi
portal=127.0.0.1:3260
ip link set lo up
ip address replace 127.0.0.1/8 dev lo

# serve [PARAMETER...]: makes the disk with these parameters of scsi_debug, and serves it.
serve() {
    killall storagetm 2>/dev/null || true
    wait_for 20 no_server
    if [ -d /sys/module/scsi_debug ]; then wait_for 20 rmmod scsi_debug; fi
    insmod /modules/scsi_debug.ko dev_size_mb=64 delay=0 "$@"
    wait_for 20 scsi_debug_disk
    lent=$(scsi_debug_disk)
    storagetm serve --json --no-announce --keys /tmp/keys --protocol iscsi --listen iscsi:$portal \
        --writable /dev/$lent >/tmp/events 2>/tmp/errors &
    server=$!
    wait_for 20 grep -q '"event":"ready"' /tmp/events || { cat /tmp/events /tmp/errors; return 1; }
    wait_for 20 grep -q '"iqn":' /tmp/events
    iqn=$(sed -n 's/.*"iqn":"\([^"]*\)".*/\1/p' /tmp/events | head -n 1)
}

no_server() { ! pidof storagetm >/dev/null; }

# scsi_debug_disk: the name of the disk of scsi_debug.
scsi_debug_disk() {
    for path in /sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block/*; do
        if [ -b "/dev/${path##*/}" ]; then
            echo "${path##*/}"
            return 0
        fi
    done
    return 1
}
