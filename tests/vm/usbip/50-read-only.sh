# A read-only disk refuses writes, also those that the kernel does not check.
usbip_attach super
refused dd if=/dev/zero of=$read_only bs=4k count=1 oflag=direct
head -c 512 /dev/zero >/tmp/zero
refused sg_raw -s 512 -i /tmp/zero $(sg $read_only) 2a 00 00 00 00 00 00 00 01 00
[ "$(hash $read_only)" = "$ro_sha256" ]
usbip_detach
