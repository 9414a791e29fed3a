# The host resets the device, by the class request and by its port, also while it reads.
controller super
truncate -s 64G /tmp/big.img
fill /tmp/a.img 4
serve /tmp/a.img /tmp/big.img
wait_for 60 has_usb 2
# The disks may be found in any order.
set -- $(usb_disks)
first=$1 last=$2
if [ "$(blockdev --getsize64 /dev/$1)" != $((4 << 20)) ]; then first=$2 last=$1; fi
dd if=/dev/$last of=/dev/null bs=1M count=512 iflag=direct &
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
