# A disk is made that holds a volume group, an array, an encrypted volume, swap space and file systems. It is kept as it is while a file
# system is mounted and the array is being written, as after a loss of power.
truncate -s 320M "$image"
lend --writable
storagetm attach 127.0.0.1
wait_for 30 has_disk "$nqn"
dev=/dev/$(disk_of "$nqn")
sfdisk -q "$dev" <<'END'
label: gpt
size=32M, type=lvm
size=24M, type=raid
size=24M, type=raid
size=24M
size=24M
size=16M, type=swap
size=120M
END
udevadm settle
p=${dev}p
pvcreate -q "${p}1"
vgcreate -q lent "${p}1"
lvcreate -q -y -L 16M -n volume lent
mke2fs -q -F -t ext4 /dev/lent/volume
mdadm --create /dev/md/lent --run --level=1 --raid-devices=2 --metadata=1.2 "${p}2" "${p}3"
udevadm settle
mdadm --wait /dev/md/lent || true
head -c 32 /dev/urandom >/tmp/key
cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /tmp/key "${p}4"
mke2fs -q -F -t ext4 -L lent "${p}5"
mkswap "${p}6"
mkfs.btrfs -q "${p}7"
udevadm settle
active | tee /tmp/active
grep lent-volume /tmp/active
grep '^md.*raid1' /tmp/active
mount -t ext4 /dev/lent/volume /mnt
echo word >/mnt/file
md=$(sed -n 's/^\(md[0-9]*\) .*/\1/p' /proc/mdstat)
# Without a delay the kernel does not mark the array clean between writes.
echo 0 >"/sys/block/$md/md/safe_mode_delay"
dd if=/dev/urandom of="/dev/$md" bs=1M seek=20 count=1 oflag=direct
sync
cp --sparse=always "$image" /tmp/made.img
umount /mnt
release
[ -z "$(active)" ]
end
mv /tmp/made.img "$image"
sha256sum "$image" >/tmp/made
