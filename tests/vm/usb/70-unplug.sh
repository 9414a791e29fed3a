# The server ends while the host reads: the host sees the device unplugged, and does not hang.
controller super
truncate -s 256G /tmp/big.img
serve /tmp/big.img
wait_for 60 has_usb 1
dd if=/dev/$(usb_disks) of=/dev/null bs=1M iflag=direct 2>/tmp/dd &
reader=$!
sleep 2
kill -0 $reader
stop
refused wait $reader
