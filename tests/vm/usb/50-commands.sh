# What sg3-utils ask, and a command that is refused.
controller super
fill /tmp/a.img 2
serve /tmp/a.img
wait_for 60 has_usb 1
dev=$(sg $(usb_disks))
sg_inq $dev
sg_vpd -p sn $dev
sg_vpd -p di $dev
sg_vpd -p bl $dev
sg_modes -a $dev
sg_readcap -l $dev
sg_opcodes $dev
# WRITE (10) of a block.
head -c 512 /dev/zero >/tmp/zero
refused sg_raw -s 512 -i /tmp/zero $dev 2a 00 00 00 00 00 00 00 01 00
# READ (10) beyond the end.
refused sg_raw -r 512 $dev 28 00 7f ff ff ff 00 00 01 00
# A vendor's command, with data in both directions and without.
refused sg_raw -r 512 $dev c1 00 00 00 00 00
refused sg_raw -s 512 -i /tmp/zero $dev c1 00 00 00 00 00
refused sg_raw $dev c1 00 00 00 00 00
[ "$(hash /dev/$(usb_disks))" = "$(hash /tmp/a.img)" ]
stop
