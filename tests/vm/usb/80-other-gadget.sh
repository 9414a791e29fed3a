# The gadget of another program is named, and left alone.
controller super
fill /tmp/a.img 2
fill /tmp/theirs.img 3
kernel_gadget /tmp/theirs.img
wait_for 60 has_usb 1
refused timeout 20 storagetm serve --usb --no-announce --keys /tmp/keys /tmp/a.img 2>/tmp/errors >/tmp/events
cat /tmp/errors
grep -q 'in use by the gadget theirs' /tmp/errors
[ "$(cat $theirs/UDC)" = dummy_udc.0 ]
[ "$(hash /dev/$(usb_disks))" = "$(hash /tmp/theirs.img)" ]
[ ! -e /sys/kernel/config/usb_gadget/storagetm ]
no_kernel_gadget
wait_for 20 no_usb
