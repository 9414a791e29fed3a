# The only disk is removed while the host does nothing: it sees the device unplugged.
controller super
serve /dev/vdb
wait_for 60 has_usb 1
echo 1 >"$(readlink -f /sys/block/vdb/device/..)/remove"
wait_for 20 no_usb
stop
