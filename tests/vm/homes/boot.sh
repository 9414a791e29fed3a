# What systemd starts on both machines: the network, what does TLS handshakes for the kernel, and the script of its role.
exec </dev/null >/dev/console 2>&1
# systemd has left the cursor in the middle of a line.
echo
. /tests/job
udevadm settle
ip link set lo up
ip addr add "$interface" dev eth0
ip link set eth0 up
tlshd -s -c /etc/tlshd.conf >/tmp/tlshd.log 2>&1 &
bash "/tests/$role.sh"
echo "vmtest end"
sync
systemctl poweroff --force --force
