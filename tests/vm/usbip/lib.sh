# What the tests of USB/IP share: attaching by the kernel's own files, the disks.

vhci=/sys/devices/platform/vhci_hcd.0

# usbip_attach SPEED: attaches the device of that speed: super or high.
usbip_attach() {
    local hub=hs number=3
    if [ "$1" = super ]; then hub=ss number=5; fi
    # State 4 is a port without a device.
    vhci_port=$(awk "\$1 == \"$hub\" && \$3 == \"004\" { print \$2 + 0; exit }" $vhci/status)
    exec 3<>"/dev/tcp/127.0.0.1/$port"
    printf '\x01\x11\x80\x03\0\0\0\0%s' "$1" >&3
    head -c $((32 - ${#1})) /dev/zero >&3
    [ "$(dd bs=1 count=320 <&3 2>/dev/null | wc -c)" = 320 ]
    echo "$vhci_port 3 65537 $number" >$vhci/attach
    exec 3>&-
    wait_for 60 has_usb 2
    read_only=$(usb_disk 0)
    writable=$(usb_disk 1)
}

usbip_detach() {
    echo $vhci_port >$vhci/detach
    wait_for 20 has_usb 0
}

# usb_disk NUMBER: the disk that is this logical unit.
usb_disk() { echo /dev/$(ls /sys/bus/scsi/devices/*:0:0:$1/block); }

# has_usb NUMBER: so many disks are there, with their sizes.
has_usb() {
    local disks=0
    for path in /sys/block/sd*; do
        if [ -e "$path" ] && [ "$(cat $path/size)" != 0 ]; then disks=$((disks + 1)); fi
    done
    [ $disks -eq "$1" ]
}

# hash PATH: SHA-256 of its contents.
hash() { sha256sum <"$1" | cut -d ' ' -f 1; }

# sg DISK: the generic device of a disk, which can be opened although the disk is read-only.
sg() { echo /dev/$(ls /sys/block/${1##*/}/device/scsi_generic); }
