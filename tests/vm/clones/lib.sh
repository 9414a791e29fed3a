# What the tests of clones share: orders to the lending machines, 1 and 2.
if ! ip addr show dev eth1 | grep -q 192.168.52.2; then
    ip addr add 192.168.52.2/24 dev eth1
    ip link set eth1 up
fi

# on MACHINE ORDER: the machine does it, and tells what it printed.
on() {
    echo "$2" | nc "192.168.5$1.1" 7 >"/tmp/answer-$1"
    sed '$d' "/tmp/answer-$1"
    [ "$(tail -n 1 "/tmp/answer-$1")" = 'exit 0' ]
}

# A test that fails says what the other machines have to say.
ended() {
    local status=$?
    [ $status = 0 ] && return
    on 1 'tail -n 4 /tmp/events; cat /tmp/complaints' || true
    on 2 'tail -n 4 /tmp/events; cat /tmp/complaints' || true
}
trap ended EXIT

# lends MACHINE DIGIT DISK...: the machine, with a machine identifier of these digits, lends disks.
lends() {
    wait_for 60 on "$1" true
    on "$1" "lend $2 192.168.5$1.1 $3 ${4:-}"
}

# nqn_of MACHINE DISK: the name under which the machine lends the disk.
nqn_of() {
    on "$1" 'cat /tmp/events' | grep '"event":"lent"' | grep "\"disk\":\"$2\"" | sed 's/.*"nqn":"\([^"]*\)".*/\1/' |
        tail -n 1
}

attach_all() { nvme connect-all -t tcp -a "192.168.5$1.1" -s 4420; }

# paths NQN: the number of the controllers of a subsystem.
paths() { grep -lx "$1" /sys/class/nvme/nvme*/subsysnqn | wc -l; }

hash_of() { dd if="$1" bs=1M iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1; }

# written DISK MEBIBYTE: random bytes are on the disk there.
written() { dd if=/dev/urandom of="$1" bs=1M seek="$2" count=1 oflag=direct conv=notrunc,fsync; }
