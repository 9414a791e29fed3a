# A cable of 480 Mb/s: other packets, shorter requests, the same bytes.
controller high
fill /tmp/a.img 16
serve /tmp/a.img
wait_for 60 has_usb 1
[ "$(cat /sys/class/udc/dummy_udc.0/current_speed)" = high-speed ]
[ "$(hash /dev/$(usb_disks))" = "$(hash /tmp/a.img)" ]
stop
