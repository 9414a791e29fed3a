# A second server leaves the gadget of the first one alone, also while that is not connected.
controller super
fill /tmp/a.img 2
serve /tmp/a.img
wait_for 60 has_usb 1
kill -STOP $server
echo >/sys/kernel/config/usb_gadget/storagetm/UDC
wait_for 20 no_usb
refused timeout 20 storagetm serve --usb --no-announce --keys /tmp/keys --listen nbd:unix:/tmp/socket --demo=4M 2>/tmp/second >/dev/null
cat /tmp/second
grep -q 'another storagetm uses the USB port' /tmp/second
kill -CONT $server
wait_for 60 has_usb 1
[ "$(hash /dev/$(usb_disks))" = "$(hash /tmp/a.img)" ]
stop
