# What the tests of activation share: an image that this machine lends to itself, and what is active of the attached disk.
export STATE_DIRECTORY=/tmp/store PATH=/usr/sbin:/usr/bin:/busybox
image=/tmp/disk.img

running() { [ -e /tmp/serving ] && kill -0 "$(cat /tmp/serving)" 2>/dev/null; }

# lend OPTION...: storagetm lends the image, so.
lend() {
    end
    storagetm serve --json --listen 127.0.0.1 "$@" "$image" </dev/null >/tmp/events 2>/tmp/complaints &
    echo $! >/tmp/serving
    wait_for 60 grep -q '"event":"ready"' /tmp/events
    nqn=$(sed -n '/"event":"lent"/s/.*"nqn":"\([^"]*\)".*/\1/p' /tmp/events)
}

# end: storagetm lends nothing any more.
end() {
    running || return 0
    kill "$(cat /tmp/serving)"
    while running; do usleep 20000; done
}

# attach_it: attaches the disk, waits until udev and what it has started are done, and prints what is active.
attach_it() {
    storagetm attach 127.0.0.1 >&2
    wait_for 30 has_disk "$nqn"
    dev=/dev/$(disk_of "$nqn")
    udevadm settle
    sleep 5
    udevadm settle
    wait_for 30 no_jobs
    active
}

no_jobs() { ! systemctl list-jobs --no-legend --no-pager | grep -q .; }

# active: what is active of the disk, a line each.
active() {
    dmsetup ls | grep -v '^No devices' || true
    grep '^md' /proc/mdstat || true
    grep -E '^/dev/(nvme|md|mapper|dm)' /proc/mounts || true
    grep -E '^/dev/' /proc/swaps || true
}

# release: what is active is stopped, and the disk is detached.
release() {
    vgchange -a n
    mdadm --stop --scan
    udevadm settle
    storagetm detach "$nqn"
    udevadm settle
}

# The disk was not changed since it was made.
unchanged() { sha256sum -c /tmp/made; }

ended() {
    local status=$?
    [ $status = 0 ] || { active; cat /tmp/complaints; journalctl -n 15 --no-pager -t kernel -t systemd-udevd -t lvm; }
    if has_disk "${nqn:-none}"; then release || true; fi
    end
    rm -f /run/udev/rules.d/60-storagetm.rules
    udevadm control --reload
}
trap ended EXIT
