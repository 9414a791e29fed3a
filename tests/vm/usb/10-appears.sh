# A read-only disk appears by itself, with its bytes, and refuses writes.
controller super
fill /tmp/a.img 24
serve /tmp/a.img
wait_for 60 has_usb 1
disk=$(usb_disks)
[ "$(cat /sys/block/$disk/ro)" = 1 ]
[ "$(cat /sys/class/udc/dummy_udc.0/current_speed)" = super-speed ]
[ "$(blockdev --getsize64 /dev/$disk)" = $((24 << 20)) ]
[ "$(hash /dev/$disk)" = "$(hash /tmp/a.img)" ]
event '"event":"attached","protocol":"usb"'
refused dd if=/dev/zero of=/dev/$disk bs=4k count=1 oflag=direct
stop
