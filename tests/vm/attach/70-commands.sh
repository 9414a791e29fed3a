# The commands that people and tools type are answered, and with sense.
attach "$rw_nqn" "$rw_line"
c=/dev/$(controller_of "$rw_nqn")
nvme id-ctrl "$c" | grep "^subnqn *: *$rw_nqn"
nvme id-ns "$dev" | grep "^nsze *: 0x"
nvme list-ns "$c" | grep '0x1$'
nvme ns-descs "$dev" -n 1 | grep -E 'uuid|nguid|eui64'
nvme smart-log "$c" | grep '^critical_warning'
nvme error-log "$c" | grep -i 'error'
nvme fw-log "$c" | grep 'frs1'
nvme effects-log "$c"
nvme ana-log "$c" | grep -i 'optimized'
grep -Fx optimized /sys/class/nvme/"${c##*/}"/nvme*c*n1/ana_state
nvme supported-log-pages "$c"
# That of nvme-cli 2.3 reads no property of a controller that is not on PCI Express.
[ "$(nvme version | sed -n 's/^nvme version \([^ ]*\).*/\1/p')" = 2.3 ] || nvme show-regs "$c"
nvme get-feature "$c" -f 7 -H
nvme get-feature "$c" -f 0x0f -H
nvme get-feature "$c" -f 6 -H
nvme list
nvme flush "$dev" -n 1
dd if=/dev/urandom of=/tmp/block bs=4k count=1
blocks=$((4096 / $(cat "/sys/block/$disk/queue/logical_block_size") - 1))
nvme write "$dev" -s 0 -c $blocks -z 4096 -d /tmp/block
nvme compare "$dev" -s 0 -c $blocks -z 4096 -d /tmp/block
nvme verify "$dev" -n 1 -s 0 -c $blocks
nvme read "$dev" -s 0 -c $blocks -z 4096 -d /tmp/read
cmp /tmp/block /tmp/read
dd if=/dev/urandom of=/tmp/other bs=4k count=1
refused nvme compare "$dev" -s 0 -c $blocks -z 4096 -d /tmp/other
refused nvme get-log "$c" --log-id=0xc7 --log-len=512
