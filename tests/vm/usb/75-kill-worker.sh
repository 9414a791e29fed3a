# The worker dies: the host sees the device unplugged, and plugged in again.
controller super
fill /tmp/a.img 2
serve /tmp/a.img
wait_for 60 has_usb 1
kill -9 $(worker)
wait_for 20 no_usb
wait_for 60 has_usb 1
[ "$(hash /dev/$(usb_disks))" = "$(hash /tmp/a.img)" ]
stop
