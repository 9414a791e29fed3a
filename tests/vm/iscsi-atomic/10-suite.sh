# All tests of WRITE ATOMIC of libiscsi's conformance suite pass on a disk that writes atomically.
serve atomic_wr=1 atomic_wr_max_length=256
[ "$(cat /sys/block/$lent/queue/atomic_write_unit_max_bytes)" = 131072 ]
iscsi-test-cu -d -S -v -t ALL.WriteAtomic16 "iscsi://$portal/$iqn/0" >/tmp/suite 2>&1 || true
# Six tests ran and passed, and none was skipped for lack of the command.
grep -qE '^ +tests +6 +6 +6 +0 ' /tmp/suite || { grep -v CU_ASSERT /tmp/suite | tail -n 25; exit 1; }
refused grep -q 'not implemented' /tmp/suite
