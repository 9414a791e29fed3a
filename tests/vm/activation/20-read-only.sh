# X42: a disk that is lent read-only is not changed, whatever udev, LVM and mdadm of the machine that attaches it do.
lend
attach_it | tee /tmp/active
grep lent-volume /tmp/active
grep '^md.*read-only.*raid1' /tmp/active
refused grep '^/dev/' /tmp/active
release
unchanged
