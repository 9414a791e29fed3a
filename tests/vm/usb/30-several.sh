# Several disks are logical units of one device, in their order; one has more than 2 TiB.
controller super
fill /tmp/a.img 2
fill /tmp/b.img 3
truncate -s $((3 << 40)) /tmp/c.img
serve /tmp/a.img --writable /tmp/b.img /tmp/c.img
wait_for 60 has_usb 3
sizes=""
for disk in $(usb_disks); do
    sizes="$sizes $(blockdev --getsize64 /dev/$disk)"
done
echo "sizes:$sizes"
case $sizes in *" $((3 << 40))"*) ;; *) exit 1 ;; esac
for disk in $(usb_disks); do
    last=$(($(blockdev --getsz /dev/$disk) - 8))
    dd if=/dev/$disk of=/dev/null bs=512 skip=$last count=8 iflag=direct
    case $(blockdev --getsize64 /dev/$disk) in
        $((2 << 20))) [ "$(hash /dev/$disk)" = "$(hash /tmp/a.img)" ] ;;
        $((3 << 20))) [ "$(cat /sys/block/$disk/ro)" = 0 ] ;;
    esac
done
stop
