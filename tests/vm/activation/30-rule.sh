# X42: storagetm activates, assembles and mounts nothing, and writes nothing to a writable disk: with the rule of
# docs/find.md, which keeps udev from it, nothing else does either.
lend --writable
rule=$(grep '^SUBSYSTEM=="block"' /tests/find.md)
[ -n "$rule" ]
mkdir -p /run/udev/rules.d
echo "${rule//NQN/$nqn}" >/run/udev/rules.d/60-storagetm.rules
cat /run/udev/rules.d/60-storagetm.rules
udevadm control --reload
attach_it >/tmp/active
cat /tmp/active
[ "$(blkid -p -o value -s TYPE "${dev}p1")" = LVM2_member ]
[ ! -s /tmp/active ]
storagetm detach "$nqn"
unchanged
