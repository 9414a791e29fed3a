# The same with packets of 512 bytes.
usbip_attach high
[ "$(cat $vhci/usb*/[0-9]-[0-9]/speed)" = 480 ]
[ "$(hash $read_only)" = "$ro_sha256" ]
usbip_detach
