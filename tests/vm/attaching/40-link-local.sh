# On a cable without any setting the line that is shown attaches the disk: behind a link-local address.
lent --open
wait_for 40 found
line=$(grep -o 'storagetm attach [^ ]*fe80[^ ]*' /tmp/found | head -n 1)
echo "+ $line"
[ -n "$line" ]
eval "$line"
[ "$(count_disks)" = 1 ]
grep 'host_iface=eth0' /sys/class/nvme/nvme*/address
storagetm detach --all
[ "$(count_disks)" = 0 ]
