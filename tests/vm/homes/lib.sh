# What the tests of homes share: orders to the lending machine, and the home on this one.
export STATE_DIRECTORY=/tmp/store PATH=/usr/sbin:/usr/bin:/busybox
export PASSWORD=Correct-Horse-9 NEWPASSWORD=Correct-Horse-9

# on_target ORDER: the lending machine does it, and tells what it printed.
on_target() {
    echo "$1" | nc "$address" 7 >/tmp/answer
    sed '$d' /tmp/answer
    [ "$(tail -n 1 /tmp/answer)" = 'exit 0' ]
}

# A test that fails says what the other machine and systemd-homed have to say.
ended() {
    local status=$?
    [ $status = 0 ] && return
    on_target 'tail -n 8 /tmp/events; cat /tmp/complaints; homectl list --no-pager' || true
    homectl list --no-pager || true
    journalctl -u systemd-homed -n 12 --no-pager || true
}
trap ended EXIT

# Two hosts, both on this machine.
first=nqn.2014-08.org.nvmexpress:uuid:6b1c2f5e-30c4-4a6e-8d27-5b8f0a9c4d11
second=nqn.2014-08.org.nvmexpress:uuid:0e2f4a36-9d0c-4f6e-8f55-3a1f2b4c5d6e

# pair NQN [OPTION...]: pairs a host with the lending machine by the code that it shows now.
pair() {
    local code
    code=$(on_target 'cat /tmp/events' | grep '"event":"pairing"' | tail -n 1 | sed 's/.*"code":"\([^"]*\)".*/\1/')
    echo "$code" | storagetm pair 192.168.50.1 --hostnqn "$@" --code-file -
}

# state: what systemd-homed says of alice's home on this machine; empty if it does not know her.
state() { homectl list --no-pager --no-legend 2>/dev/null | awk '$1 == "alice" { print $4 }'; }

# is STATE: it is this.
is() { [ "$(state)" = "$1" ]; }

# attach_home OPTION...: attaches it, and waits until systemd-homed has seen it.
attach_home() {
    storagetm attach --home=alice "$@" lender
    wait_for 30 is inactive
}
