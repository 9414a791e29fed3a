# A read-only disk says so, and a write that is sent all the same is refused by the target.
attach "$ro_nqn" "$ro_line"
[ "$(blockdev --getro "$dev")" = 1 ]
refused dd if=/dev/zero of="$dev" bs=4k count=1 oflag=direct
dd if=/dev/zero of=/tmp/block bs=512 count=1
refused nvme write "$dev" -s 0 -c 0 -z 512 -d /tmp/block >/tmp/answer 2>&1
refused nvme write-zeroes "$dev" -n 1 -s 0 -c 0 >>/tmp/answer 2>&1
refused nvme dsm "$dev" -n 1 -d -s 0 -b 8 >>/tmp/answer 2>&1
cat /tmp/answer
[ "$(grep -c -i 'write protected' /tmp/answer)" = 3 ]
