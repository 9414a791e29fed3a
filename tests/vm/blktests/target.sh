#!/usr/bin/bash
# The target, as blktests controls it (NVME_TARGET_CONTROL): one disk of this machine, lent on one of
# its own addresses.
run=/run/target
address=192.0.2.1
host=0f01fb42-9f7f-4856-b0b3-51e60b8de349
hostnqn=nqn.2014-08.org.nvmexpress:uuid:$host

# import NAME KEY: stores a key in its printed form.
import() { printf '%s\n' "$2" | storagetm key import "$1" --keys $run/keys --replace; }

serve() {
    setsid storagetm serve --json --no-announce --protocol nvme --keys $run/keys --listen $address:4420 \
        "$@" --writable /dev/vda </dev/null >$run/events 2>$run/errors &
    echo $! >$run/pid
    for _ in $(seq 300); do
        grep -q '"ready"' $run/events && return
        usleep 100000
    done
    cat $run/events $run/errors
    return 1
}

stop() {
    [ -e $run/pid ] || return 0
    kill -TERM "$(cat $run/pid)"
    for _ in $(seq 100); do
        [ -e "/proc/$(cat $run/pid)/cmdline" ] || break
        usleep 50000
    done
    rm -rf $run/pid $run/keys
}

setup() {
    local hostkey='' ctrlkey='' access=--open
    while [ $# -gt 0 ]; do
        case $1 in
        --hostkey) hostkey=$2 ;;
        # blktests writes it without the l.
        --ctrlkey | --ctrkey) ctrlkey=$2 ;;
        esac
        shift
    done
    mkdir -p $run/keys
    chmod 700 $run/keys
    if [ -n "$hostkey" ]; then
        access=
        import host "$hostkey"
        set -- --chap-key host
        if [ -n "$ctrlkey" ]; then
            import controller "$ctrlkey"
            set -- "$@" --chap-controller-key controller
        fi
        storagetm host add $hostnqn --keys $run/keys --writable "$@"
    fi
    serve $access
}

# lent NAME: a field of the disk in storagetm's events.
lent() { sed -n "s/.*\"event\":\"lent\".*\"$1\":\"\\([^\"]*\\)\".*/\\1/p" $run/lent; }

config() {
    case $1 in
    --show-blkdev-type) echo file ;;
    --show-trtype) echo tcp ;;
    --show-hostnqn) echo $hostnqn ;;
    --show-hostid) echo $host ;;
    --show-traddr) echo $address ;;
    --show-trsvid) echo 4420 ;;
    --show-subsysnqn) lent nqn ;;
    --show-subsys-uuid) lent nqn | sed 's/.*:uuid://' ;;
    esac
}

command=$1
shift
case $command in
config) config "$@" ;;
setup) stop && setup "$@" ;;
cleanup) stop ;;
add-ports) ;;
# Before the first test: its names are those of the disk.
names)
    mkdir -p $run
    setup >$run/setup 2>&1 || cat $run/setup
    cp $run/events $run/lent
    stop
    ;;
esac
