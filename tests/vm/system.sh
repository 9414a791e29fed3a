# What systemd starts on machines that boot it: the network, what does TLS handshakes for the kernel, and the script of
# the role.
exec </dev/null >/dev/console 2>&1
# systemd has left the cursor in the middle of a line.
echo
. /tests/job
udevadm settle
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip addr add "$interface" dev eth0
    ip link set eth0 up
fi
if [ -x /usr/sbin/tlshd ]; then tlshd -s -c /etc/tlshd.conf >/tmp/tlshd.log 2>&1 & fi
bash "/tests/$role.sh"
echo "vmtest end"
sync
systemctl poweroff --force --force
