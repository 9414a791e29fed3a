# The host deconfigures the device and configures it again: its disk is gone, and returns.
controller super
fill /tmp/a.img 4
serve /tmp/a.img
wait_for 60 has_usb 1
device=$(readlink -f /sys/block/$(usb_disks)/device)
device=${device%/*:1.0/*}
echo 0 >$device/bConfigurationValue
wait_for 20 no_usb
event '"event":"detached","protocol":"usb"'
echo 1 >$device/bConfigurationValue
wait_for 60 has_usb 1
[ "$(hash /dev/$(usb_disks))" = "$(hash /tmp/a.img)" ]
refused grep '"event":"violation"' /tmp/events
stop
