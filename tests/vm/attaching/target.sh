# What the lending machine is told to do in the tests of attaching; its orders are lines of these.
export STATE_DIRECTORY=/tmp/store

running() { [ -e /tmp/serving ] && kill -0 "$(cat /tmp/serving)" 2>/dev/null; }

# lend OPTION...: storagetm lends both disks, so; anew unless it does so already. The kernel lets go of a ring's disks a
# moment after the process is gone, so whoever comes next may have to try again.
lend() {
    if running && [ "$(cat /tmp/options)" = "$*" ]; then return; fi
    end
    for _ in 1 2 3 4 5; do
        begin "$@" && return
        grep -q 'is in use' /tmp/complaints || break
        sleep 1
    done
    cat /tmp/events /tmp/complaints
    return 1
}

# begin OPTION...: it is started, and ready.
begin() {
    storagetm serve --json "$@" /dev/vda --writable /dev/vdb </dev/null >/tmp/events 2>/tmp/complaints &
    echo $! >/tmp/serving
    echo "$*" >/tmp/options
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
