# What the tests of USB share: a controller without hardware, the server, the disks at its host.

# controller SPEED: loads the controller, whose host is this machine: super or high.
controller() {
    # What a test that failed has left.
    if killall storagetm 2>/dev/null; then sleep 2; fi
    rmmod dummy_hcd 2>/dev/null || true
    local super=0
    [ "$1" = super ] && super=1
    insmod /modules/dummy_hcd.ko is_super_speed=$super
    wait_for 10 [ -e /sys/class/udc/dummy_udc.0 ]
}

# serve ARGUMENT...: starts the server; its events are in /tmp/events.
serve() {
    : >/tmp/events
    storagetm serve --usb --json --no-announce --keys /tmp/keys "$@" >/tmp/events 2>/tmp/errors &
    server=$!
    event '"event":"ready"' || { cat /tmp/events /tmp/errors; return 1; }
}

# usb_disks: the names of the disks on USB, in the order of their logical units.
usb_disks() {
    for path in /sys/block/sd*; do
        if [ -e "$path" ]; then echo "${path##*/}"; fi
    done
}

count_usb() { usb_disks | wc -l; }
has_usb() { [ "$(count_usb)" -eq "$1" ] && [ -b "/dev/$(usb_disks | tail -n 1)" ]; }
no_usb() { [ "$(count_usb)" -eq 0 ]; }

# stop: the server ends, and the host sees the device unplugged.
stop() {
    kill "$server"
    wait "$server" || true
    wait_for 20 no_usb
    [ ! -e /sys/kernel/config/usb_gadget/storagetm ]
}

# event TEXT: the server has reported it.
event() { wait_for 20 grep -q "$1" /tmp/events; }

# hash PATH: SHA-256 of its contents.
hash() { sha256sum <"$1"; }

# fill FILE MEGABYTES: a file of random bytes.
fill() { dd if=/dev/urandom of="$1" bs=1M count="$2" 2>/dev/null; }

# sg DISK: the generic device of a disk, which can be opened although the disk is read-only.
sg() { echo /dev/$(ls /sys/block/$1/device/scsi_generic); }

# worker: the process that serves, whose command line is `storagetm worker`.
worker() {
    for process in /proc/[0-9]*; do
        if tr '\0' ' ' <"$process/cmdline" | grep -q '^storagetm worker'; then
            echo "${process##*/}"
        fi
    done
}

# kernel_gadget FILE: the kernel's own function serves a file, as a gadget of another program.
kernel_gadget() {
    [ -d /sys/kernel/config/usb_gadget ] || mount -t configfs config /sys/kernel/config
    theirs=/sys/kernel/config/usb_gadget/theirs
    mkdir $theirs
    echo 0x1d6b >$theirs/idVendor
    echo 0x0104 >$theirs/idProduct
    mkdir $theirs/strings/0x409 $theirs/configs/c.1 $theirs/functions/mass_storage.0
    echo 0123456789AB >$theirs/strings/0x409/serialnumber
    echo "$1" >$theirs/functions/mass_storage.0/lun.0/file
    ln -s $theirs/functions/mass_storage.0 $theirs/configs/c.1/
    echo dummy_udc.0 >$theirs/UDC
}

# no_kernel_gadget: removes it.
no_kernel_gadget() {
    echo >$theirs/UDC
    rm $theirs/configs/c.1/mass_storage.0
    rmdir $theirs/configs/c.1 $theirs/functions/mass_storage.0 $theirs/strings/0x409 $theirs
}
