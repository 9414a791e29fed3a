# Each line of nvme-cli that the other machine prints is understood by the nvme-cli of this release, and attaches what it says:
# also at a link-local address, with the name of this machine's interface.
lent --open
on_target 'cat /tmp/events' | grep '"event":"lent"' | grep -o '"nvme connect[^"]*"' | tr -d '"' |
    sed 's/INTERFACE/eth0/' | sort -u >/tmp/lines
cat /tmp/lines
grep -q '^nvme connect -t tcp -a fe80.* --host-iface eth0' /tmp/lines
grep -q '^nvme connect-all -t tcp -a fe80.* --host-iface eth0' /tmp/lines
grep -q '^nvme connect -t tcp -a 192.168.50.1 ' /tmp/lines
while read -r line; do
    case $line in
    "nvme connect-all "*) disks=2 ;;
    *) disks=1 ;;
    esac
    eval "$line"
    wait_for 20 are_attached $disks
    nvme disconnect-all
    wait_for 20 are_attached 0
done </tmp/lines
