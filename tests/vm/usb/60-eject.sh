# The user of the host ejects the disk; another one stays.
controller super
fill /tmp/a.img 2
fill /tmp/b.img 2
serve /tmp/a.img /tmp/b.img
wait_for 60 has_usb 2
set -- $(usb_disks)
first=$1
sg_start --eject $(sg $first)
event '"reason":"ejected there: safe to unplug"'
refused dd if=/dev/$first of=/dev/null bs=4k count=1 iflag=direct
dd if=/dev/$2 of=/dev/null bs=4k count=1 iflag=direct
stop
