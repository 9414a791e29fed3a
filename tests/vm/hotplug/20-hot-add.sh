# A disk is plugged into the other machine: the host is told, looks again, and finds it.
# Distributions do this by a udev rule for the same event.
uevent bash -c 'echo "${NVME_AEN:-}" >>/tmp/events' &
listener=$!
sleep 1
ask plug
wait_for 20 grep -q 0x70f002 /tmp/events
kill $listener
nvme connect-all -t tcp -a "$address" -s "$port"
third() { [ "$(count_disks)" = 3 ]; }
wait_for 20 third
cat /sys/class/nvme/nvme*/serial | grep "$plugged"
for disk in $(disks); do
    dd if="/dev/$disk" of=/dev/null bs=1M iflag=direct
done
