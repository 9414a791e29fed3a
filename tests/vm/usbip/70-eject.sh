# A disk that the user ejects is not present; another one stays.
usbip_attach super
sg_start --eject $(sg $read_only)
refused dd if=$read_only of=/dev/null bs=4k count=1 iflag=direct
dd if=$writable of=/dev/null bs=4k count=1 iflag=direct
usbip_detach
