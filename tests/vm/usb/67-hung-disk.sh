# A disk that does not respond: the host gives its command up, resets the device and uses the other disk.
# Once the disk responds again, it is used as before.
controller super
fill /tmp/a.img 4
dmsetup --noudevsync --noudevrules create slow --table "0 $(cat /sys/block/vdb/size) linear /dev/vdb 0"
trap 'dmsetup --noudevsync resume slow; killall storagetm; sleep 2; dmsetup --noudevsync remove slow' ERR
slow=$(dmsetup info -c --noheadings -o blkdevname slow)
wait_for 10 [ -b /dev/$slow ]
serve /tmp/a.img --writable /dev/$slow
wait_for 60 has_usb 2
for disk in $(usb_disks); do
    if [ "$(cat /sys/block/$disk/ro)" = 1 ]; then good=$disk; else hung=$disk; fi
done
# How long the host waits for a command, in seconds.
echo 3 >/sys/block/$hung/device/timeout
dmsetup --noudevsync suspend slow
dd if=/tmp/a.img of=/dev/$hung bs=64k count=1 oflag=direct &
writer=$!
sleep 1
# The command to the other disk is behind the host's reset.
dd if=/dev/$good of=/tmp/read bs=64k count=1 iflag=direct
cmp -n 65536 /tmp/read /tmp/a.img
# The host's write has not ended, and lists do not wait for it.
kill -0 $writer
timeout 20 storagetm list >/dev/null
dmsetup --noudevsync resume slow
wait $writer
dd if=/dev/$hung of=/tmp/read bs=64k count=1 iflag=direct
cmp -n 65536 /tmp/read /tmp/a.img
refused grep '"event":"violation"' /tmp/events
stop
dmsetup --noudevsync remove slow
