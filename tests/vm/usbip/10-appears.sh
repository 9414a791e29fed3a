# The kernel finds both disks, with their sizes and their write protection.
usbip_attach super
[ "$(cat $vhci/usb*/[0-9]-[0-9]/speed)" = 5000 ]
[ "$(blockdev --getsize64 $read_only)" = $((32 << 20)) ]
[ "$(blockdev --getsize64 $writable)" = $((64 << 20)) ]
[ "$(blockdev --getro $read_only) $(blockdev --getro $writable)" = "1 0" ]
sg_vpd -p sn $(sg $read_only) | grep -q SERIAL-ro
usbip_detach
