# The host resets the device, by the class request and by its port, also while it reads.
controller super
truncate -s 64G /tmp/big.img
fill /tmp/a.img 4
serve /tmp/a.img /tmp/big.img
wait_for 60 has_usb 2
first=$(usb_disks | head -n 1)
dd if=/dev/$(usb_disks | tail -n 1) of=/dev/null bs=1M count=512 iflag=direct &
reader=$!
for kind in --device --bus --device; do
    sleep 1
    kill -0 $reader
    sg_reset $kind $(sg $first)
done
wait $reader
[ "$(hash /dev/$first)" = "$(hash /tmp/a.img)" ]
if grep '"event":"violation"' /tmp/events; then exit 1; fi
stop
