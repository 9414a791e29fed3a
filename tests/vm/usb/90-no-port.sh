# Without a port that can act as a device, the reason is given.
controller super
rmmod dummy_hcd
refused timeout 20 storagetm serve --usb --no-announce --keys /tmp/keys --demo=4M 2>/tmp/errors >/tmp/events
cat /tmp/errors
grep -q 'no USB port that can act as a device' /tmp/errors
