# A disk that does not write atomically has no such command, and no limits.
serve
[ "$(cat /sys/block/$lent/queue/atomic_write_unit_max_bytes)" = 0 ]
iscsi-test-cu -d -S -v -t ALL.WriteAtomic16.VPD "iscsi://$portal/$iqn/0" >/tmp/suite 2>&1 || true
grep -q 'WRITEATOMIC16 is not implemented' /tmp/suite || { cat /tmp/suite /tmp/events /tmp/errors; exit 1; }
