# The partition of the read-only disk is found.
usbip_attach super
wait_for 20 [ -b ${read_only}1 ]
[ "$(blockdev --getsize64 ${read_only}1)" = $((16 << 20)) ]
usbip_detach
