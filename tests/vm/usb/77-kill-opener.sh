# The process that has set the device up is killed while the host writes: the host sees the device
# unplugged, and the next server removes what is left, without --usb too.
controller super
serve --writable /dev/vdb
wait_for 60 has_usb 1
disk=$(usb_disks)
while dd if=/dev/zero of=/dev/$disk bs=1M count=8 oflag=direct; do :; done 2>/dev/null &
writer=$!
wait_for 20 event '"event":"attached","protocol":"usb"'
sleep 1
kill -0 $writer
kill -9 $server
wait_for 20 no_usb
wait $writer || true
[ -d /sys/kernel/config/usb_gadget/storagetm ]
storagetm serve --json --no-announce --keys /tmp/keys /dev/vdb >/tmp/events 2>/tmp/errors &
server=$!
event '"event":"ready"'
[ ! -e /sys/kernel/config/usb_gadget/storagetm ]
kill $server
wait $server || true
