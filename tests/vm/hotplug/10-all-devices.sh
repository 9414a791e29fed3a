# Every disk of the other machine is lent, the write-protected one too; one line attaches them all.
wait_for 30 nvme discover -t tcp -a "$address" -s "$port"
nvme connect-all -t tcp -a "$address" -s "$port" --persistent
for nqn in $nqns; do
    wait_for 20 has_disk "$nqn"
done
[ "$(count_disks)" = 2 ]
for disk in $(disks); do
    [ "$(blockdev --getro "/dev/$disk")" = 1 ]
    dd if="/dev/$disk" of=/dev/null bs=1M iflag=direct
done
