# X42: without the rule, udev of the machine activates the volume group and assembles the array of a writable disk, as of one that is
# plugged in. It mounts nothing, swaps to nothing, and changes nothing as long as nobody writes to the volumes.
lend --writable
attach_it | tee /tmp/active
grep lent-volume /tmp/active
grep '^md.*(auto-read-only) raid1' /tmp/active
grep 'resync=PENDING' /proc/mdstat
refused grep '^/dev/' /tmp/active
refused storagetm detach "$nqn"
release
unchanged
