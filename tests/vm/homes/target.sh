# What the lending machine is told to do in the tests of homes; its orders are lines of these.
export STATE_DIRECTORY=/tmp/store PATH=/usr/sbin:/usr/bin:/busybox
export PASSWORD=Correct-Horse-9 NEWPASSWORD=Correct-Horse-9

# make_home: alice has a home here, with a greeting in it. Argon2 would take minutes under emulation.
make_home() {
    mke2fs -q -F -t ext4 /dev/vda && mount /dev/vda /home || return
    homectl create alice --storage=luks --disk-size=64M --fs-type=ext4 --enforce-password-policy=no \
        --luks-pbkdf-type=pbkdf2 --luks-pbkdf-force-iterations=1000 || return
    homectl activate alice && echo 'hello from the lender' >/home/alice/hello
}

running() { [ -e /tmp/serving ] && kill -0 "$(cat /tmp/serving)" 2>/dev/null; }

# lend OPTION...: storagetm lends, so.
lend() {
    end
    storagetm serve --json --listen 192.168.50.1 "$@" </dev/null >/tmp/events 2>/tmp/complaints &
    echo $! >/tmp/serving
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

# edges: what is before and after the partition: the first and the last mebibyte.
edges() { { head -c 1M /home/alice.home; tail -c 1M /home/alice.home; } | sha256sum; }

# is_locked: another program holds the lock of the home.
is_locked() { ! flock -n -x /home/alice.home true; }
