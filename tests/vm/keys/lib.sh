# What the tests of keys share: orders to the lending machine, keys where either side looks for them.

host=$(cat /etc/nvme/hostnqn)
discovery=nqn.2014-08.org.nvmexpress.discovery
connect="nvme connect -t tcp -a $address -s $port"
# Older programs derive a key for TLS in a way of their own, of which the target must be told.
case $(nvme version) in
    *'libnvme version 1.1'[0-3]*) compat=--tls-compat ;;
    *) compat= ;;
esac

# on_target ORDER: the lending machine does it, with what stands on the standard input, and tells what it
# printed.
on_target() {
    { echo "$1"; cat; } | nc "$address" 7 >/tmp/answer
    sed '$d' /tmp/answer
    [ "$(tail -n 1 /tmp/answer)" = 'exit 0' ]
}

# A test that fails says what the other machine has to say.
explain() { on_target "tail -n +$((told + 1)) /tmp/events; cat /tmp/complaints" </dev/null; }
ended() {
    local status=$?
    [ -z "${between:-}" ] || kill "$between"
    [ $status = 0 ] || explain
}
trap ended EXIT

# over NUMBER: connections go by way of somebody who leaves one group of those that the kernel offers, by its
# number, from 0 for none to 5 for ffdhe8192. Sets `connect`.
over() {
    ip link set lo up
    xtask vm narrow 127.0.0.1:4421 "$address:$port" "$1" >/tmp/between 2>&1 &
    between=$!
    connect="nvme connect -t tcp -a 127.0.0.1 -s 4421"
    wait_for 30 nc 127.0.0.1 4421
}

# nqn_of DISK: the name under which a disk is lent.
nqn_of() {
    on_target 'cat /tmp/events' | grep '"event":"lent"' | grep "\"disk\":\"$1\"" |
        sed 's/.*"nqn":"\([^"]*\)".*/\1/' | tail -n 1
}

# begin: both disks are lent, to nobody yet; no key is known to either side.
begin() {
    wait_for 60 on_target true
    on_target lend
    on_target forget
    ring=$(awk '$8 == "keyring" && $9 ~ /^[.]nvme/ { print "0x" $1 }' /proc/keys)
    keyctl clear "$ring"
    ro_nqn=$(nqn_of /dev/vda)
    rw_nqn=$(nqn_of /dev/vdb)
    [ -n "$ro_nqn" ] && [ -n "$rw_nqn" ]
    : >/tmp/tlshd.log
    from_now
}

# bring NAME KEY: the lending machine keeps a key that was made here.
bring() { on_target "storagetm key import $1" <<<"$2"; }

# let_in OPTION...: the lending machine lets this one in, so.
let_in() {
    on_target "storagetm host add $host --name client $*" >/dev/null
    noticed
}

# noticed: storagetm has had the time to see what has changed in the folder of keys.
noticed() { usleep 1000000; }

# insert VERSION KEY NQN...: the kernel finds the key for these names.
insert() {
    local version=$1 key=$2
    shift 2
    for name in "$@"; do
        nvme check-tls-key --insert --identity="$version" --keydata="$key" --hostnqn="$host" \
            --subsysnqn="$name"
    done
}

# whole: the disk that was attached last is that of the other machine, to the last byte.
whole() { [ "$(dd if="$dev" bs=1M iflag=direct | sha256sum | cut -d ' ' -f 1)" = "$ro_sha256" ]; }

# event NAME: storagetm has told of it since `told`.
event() { on_target "tail -n +$((told + 1)) /tmp/events" | grep "\"event\":\"$1\""; }

# from_now: what storagetm told before counts no more.
from_now() { told=$(on_target 'wc -l </tmp/events'); }

# turned_away COMMAND...: it fails, no disk comes of it, and storagetm tells of a refusal.
turned_away() {
    from_now
    refused "$@"
    [ "$(count_disks)" = 0 ]
    wait_for 30 event refused
}

# chap_key HASH BYTES: a key for DH-HMAC-CHAP as nvme-cli makes it; 1 is SHA-256, 2 SHA-384, 3 SHA-512.
chap_key() { nvme gen-dhchap-key --hmac="$1" --key-length="$2" --nqn="$host"; }

# tls_key HASH: a key for TLS as nvme-cli makes it; 1 is SHA-256, 2 SHA-384.
tls_key() { nvme gen-tls-key --hmac="$1"; }

# speak: the kernel says which group and which hash the target has chosen.
speak() {
    [ -d /sys/kernel/debug/dynamic_debug ] || mount -t debugfs debug /sys/kernel/debug
    echo 'file drivers/nvme/host/auth.c +p' >/sys/kernel/debug/dynamic_debug/control
}

# encrypted_by SUITE: the disk that was attached last is encrypted, as both sides say.
encrypted_by() {
    grep . "/sys/class/nvme/$(controller_of "$nqn")/tls_key" | grep -v '^0*$'
    event attached | grep "\"tls\":\"$1\""
}

# chap_with NUMBER GROUP [ALSO]: the disk is attached once this machine has proved who it is with that group; if
# `also` stands there, the other one too.
chap_with() {
    local keys=(--chap-key host) secrets=()
    begin
    key=$(chap_key 1 32)
    bring host "$key"
    secrets=(--dhchap-secret="$key")
    if [ "${3:-}" = also ]; then
        key=$(chap_key 3 64)
        bring other "$key"
        keys+=(--chap-controller-key other)
        secrets+=(--dhchap-ctrl-secret="$key")
    fi
    let_in "${keys[@]}"
    over "$1"
    speak
    attach "$ro_nqn" "$connect -n $ro_nqn" "${secrets[@]}"
    whole
    event attached | grep '"chap":true'
    dmesg | grep "selected DH group $2"
}
