# What the lending machine is told to do in the tests of keys; its orders are lines of these.
export STATE_DIRECTORY=/tmp/store

running() { [ -e /tmp/serving ] && kill -0 "$(cat /tmp/serving)" 2>/dev/null; }

# lend OPTION...: storagetm lends both disks, so; anew unless it does so already.
lend() {
    if running && [ "$(cat /tmp/options)" = "$*" ]; then return; fi
    end
    storagetm serve --json --listen 192.168.50.1:4420 "$@" /dev/vda --writable /dev/vdb \
        </dev/null >/tmp/events 2>/tmp/complaints &
    echo $! >/tmp/serving
    echo "$*" >/tmp/options
    for _ in $(seq 600); do
        if grep -q '"event":"ready"' /tmp/events; then return; fi
        running || break
        usleep 100000
    done
    cat /tmp/events /tmp/complaints
    return 1
}

# end: storagetm lends nothing any more.
end() {
    running || return 0
    kill "$(cat /tmp/serving)"
    while running; do usleep 20000; done
}

# forget: nobody is let in any more, and no key is kept.
forget() {
    mkdir -p "$STATE_DIRECTORY"
    rm -f "$STATE_DIRECTORY"/hosts/* "$STATE_DIRECTORY"/keys/*
}
