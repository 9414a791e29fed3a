# What the tests of attaching share: orders to the lending machine, and what storagetm says there is.
export STATE_DIRECTORY=/tmp/store
ip link set lo up

# on_target ORDER: the lending machine does it, and tells what it printed.
on_target() {
    echo "$1" | nc "$address" 7 >/tmp/answer
    sed '$d' /tmp/answer
    [ "$(tail -n 1 /tmp/answer)" = 'exit 0' ]
}

# A test that fails says what the other machine has to say.
ended() {
    local status=$?
    [ $status = 0 ] || on_target 'tail -n 4 /tmp/events; cat /tmp/complaints' || true
}
trap ended EXIT

# lent OPTION...: the other machine lends both disks, so.
lent() {
    wait_for 60 on_target true
    on_target "lend $*"
    ro_nqn=$(nqn_of /dev/vda)
    rw_nqn=$(nqn_of /dev/vdb)
    [ -n "$ro_nqn" ] && [ -n "$rw_nqn" ]
}

# nqn_of DISK: the name under which a disk is lent.
nqn_of() {
    on_target 'cat /tmp/events' | grep '"event":"lent"' | grep "\"disk\":\"$1\"" |
        sed 's/.*"nqn":"\([^"]*\)".*/\1/' | tail -n 1
}

# found: storagetm finds the other machine, twice; what it says of it is in /tmp/found and /tmp/found.json. Who has just
# answered waits a second before it does again.
found() {
    storagetm find --timeout 4 --json >/tmp/found.json
    grep -q '"name"' /tmp/found.json || return 1
    storagetm find --timeout 4 | tee /tmp/found
    grep -q ', at ' /tmp/found
}

# whole DISK SHA256: it is that of the other machine, to the last byte.
whole() { [ "$(dd if="$1" bs=1M iflag=direct | sha256sum | cut -d ' ' -f 1)" = "$2" ]; }

# are_attached NUMBER: so many disks are attached.
are_attached() { [ "$(count_disks)" = "$1" ]; }
