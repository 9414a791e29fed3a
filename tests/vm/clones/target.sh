# What the lending machines are told to do in the tests of clones; their orders are lines of these.
export STATE_DIRECTORY=/tmp/store

running() { [ -e /tmp/serving ] && kill -0 "$(cat /tmp/serving)" 2>/dev/null; }

# lend DIGIT ADDRESS DISK...: with a machine identifier of this digit, storagetm lends disks writable. The kernel lets go
# of a ring's disks a moment after the process is gone.
lend() {
    end
    head -c 32 /dev/zero | tr '\0' "$1" >/etc/machine-id
    address=$2
    shift 2
    for _ in 1 2 3 4 5; do
        begin "$@" && return
        grep -q 'is in use' /tmp/complaints || break
        sleep 1
    done
    cat /tmp/events /tmp/complaints
    return 1
}

begin() {
    disks=()
    for disk in "$@"; do disks+=(--writable "$disk"); done
    storagetm serve --json --open --listen "$address" "${disks[@]}" </dev/null >/tmp/events 2>/tmp/complaints &
    echo $! >/tmp/serving
    for _ in $(seq 600); do
        if grep -q '"event":"ready"' /tmp/events; then return; fi
        running || break
        usleep 100000
    done
    return 1
}

# end: storagetm lends nothing any more.
end() {
    running || return 0
    kill "$(cat /tmp/serving)"
    while running; do usleep 20000; done
}
