# What the tests share: waiting, finding the disk of a name, attaching, talking to the host.

# wait_for SECONDS COMMAND...: tries a command every tenth of a second; says what it printed last.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/tmp/attempt 2>&1; do
        if [ $SECONDS -ge $end ]; then
            echo "waited in vain for: $*"
            cat /tmp/attempt
            return 1
        fi
        usleep 100000
    done
}

# refused COMMAND...: the command must fail.
refused() {
    if "$@"; then
        echo "not refused: $*"
        return 1
    fi
}

# ask WORD: the host does something; it does not answer.
ask() { echo "vmtest ask $1" >/dev/console; }

# tell NAME VALUE: the host is told a value.
tell() { echo "vmtest value $1=$2" >/dev/console; }

# disks: the names of all attached disks, such as nvme0n1; hidden paths are no disks.
disks() {
    for path in /sys/block/nvme*; do
        path=${path##*/}
        case $path in *c* | *'*') ;; *) echo "$path" ;; esac
    done
}

count_disks() { disks | wc -l; }

# disk_of NQN: the name of the disk of a subsystem.
disk_of() {
    for disk in $(disks); do
        if [ "$(cat "/sys/block/$disk/device/subsysnqn")" = "$1" ]; then
            echo "$disk"
            return 0
        fi
    done
    return 1
}

has_disk() { disk_of "$1" >/dev/null && [ -b "/dev/$(disk_of "$1")" ]; }
gone() { ! has_disk "$1"; }

# controller_of NQN: the name of the controller of a subsystem, such as nvme0.
controller_of() {
    for path in /sys/class/nvme/nvme*; do
        if [ "$(cat "$path/subsysnqn")" = "$1" ]; then
            echo "${path##*/}"
            return 0
        fi
    done
    return 1
}

state_of() { cat "/sys/class/nvme/$(controller_of "$1")/state"; }
live() { [ "$(state_of "$1")" = live ]; }
not_live() { ! live "$1"; }

# attach NQN LINE [OPTION...]: types the printed line and waits for the disk.
attach() {
    nqn=$1 line=$2
    shift 2
    echo "+ $line $*"
    eval "$line $*"
    wait_for 60 has_disk "$nqn"
    disk=$(disk_of "$nqn")
    dev=/dev/$disk
    udev_settle
}

# udev_settle: partitions are read when the disk appears; wait until nobody has it open.
udev_settle() { blockdev --flushbufs "$dev"; }

# verify FILE [OPTION...]: random reads and writes at depth 32, each block checked when read again.
verify() {
    file=$1
    shift
    fio --name=verify --filename="$file" --direct=1 --ioengine=io_uring --iodepth=32 --rw=randrw \
        --bs=4k --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=7 --output=/tmp/fio "$@" ||
        { cat /tmp/fio; return 1; }
    grep -q 'err= 0' /tmp/fio
}

# What only the tests of one scenario share.
if [ -e /tests/cases/lib.sh ]; then . /tests/cases/lib.sh; fi
