# One of two disks is removed: it is reported at once; its unit has no medium, and the other disk is used
# as before.
controller super
fill /tmp/a.img 4
serve /tmp/a.img /dev/vdb
wait_for 60 has_usb 2
for disk in $(usb_disks); do
    case $(cat /sys/block/$disk/size) in 8192) other=$disk ;; *) removed=$disk ;; esac
done
generic=$(sg $removed)
[ "$(hash /dev/$other)" = "$(hash /tmp/a.img)" ]
echo 1 >"$(readlink -f /sys/block/vdb/device/..)/remove"
event '"event":"withdrawn","disk":"/dev/vdb"'
refused sg_raw $generic 00 00 00 00 00 00 2>/tmp/sense
cat /tmp/sense
grep -qi 'medium not present' /tmp/sense
event '"event":"detached","protocol":"usb","disk":"/dev/vdb"'
echo 1 >/sys/block/$other/device/rescan
[ "$(dd if=/dev/$other bs=1M iflag=direct | sha256sum)" = "$(hash /tmp/a.img)" ]
stop
echo 1 >/sys/bus/pci/rescan
wait_for 20 [ -b /dev/vdb ]
