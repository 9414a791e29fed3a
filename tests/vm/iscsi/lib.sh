# What the tests of iSCSI share.
mkdir -p /run/lock/iscsi /var/lib/iscsi
# The initiator's process runs from the first test on; it needs lo, over which nothing else goes.
if ! pidof iscsid >/dev/null; then
    iscsid -f -d 1 </dev/null >/tmp/iscsid.log 2>&1 &
    sleep 1
fi

# iscsi_disk IQN: the kernel's name of the disk of a target.
iscsi_disk() {
    for session in /sys/class/iscsi_session/session*; do
        [ "$(cat "$session/targetname")" = "$1" ] || continue
        ls "$session"/device/target*/*:0/block 2>/dev/null | head -n 1
        return
    done
}

has_iscsi_disk() { [ -n "$(iscsi_disk "$1")" ] && [ -b "/dev/$(iscsi_disk "$1")" ]; }

# login IQN: logs in to a target and waits for its disk.
login() {
    iscsiadm -m discovery -t sendtargets -p "$portal"
    iscsiadm -m node -T "$1" -p "$portal" -l
    wait_for 60 has_iscsi_disk "$1"
    disk=$(iscsi_disk "$1")
    dev=/dev/$disk
    udev_settle
}

ended() {
    local status=$?
    [ $status = 0 ] || tail -n 20 /tmp/iscsid.log
    iscsiadm -m node -U all >/dev/null 2>&1 || true
}
trap ended EXIT
