# The disk is pulled: the host loses it, the discovery log too, and the others are not disturbed.
for path in /sys/class/nvme/nvme*; do
    if grep -q "$plugged" "$path/serial"; then pulled=$(cat "$path/subsysnqn"); fi
done
ask unplug
wait_for 30 gone "$pulled"
nvme discover -t tcp -a "$address" -s "$port" >/tmp/log
refused grep "$pulled" /tmp/log
[ "$(count_disks)" = 2 ]
for disk in $(disks); do
    dd if="/dev/$disk" of=/dev/null bs=1M iflag=direct
done
nvme disconnect-all
