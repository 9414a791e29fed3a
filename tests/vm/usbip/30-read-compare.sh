# Every byte is read as it is.
usbip_attach super
[ "$(hash $read_only)" = "$ro_sha256" ]
usbip_detach
