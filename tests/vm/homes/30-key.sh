# The first login needs the key of the lender: systemd-homed refuses without it, and attach --home stores it.
refused storagetm attach --home=alice lender 2>/tmp/said
cat /tmp/said
grep 'does not trust lender' /tmp/said
wait_for 30 is unfixated
refused homectl activate alice >/tmp/said 2>&1
cat /tmp/said
grep 'not signed by any known key' /tmp/said
storagetm attach --home=alice --yes lender 2>/tmp/said
cat /tmp/said
grep 'next: homectl activate alice' /tmp/said
# There is no tlshd.
systemctl is-active storagetm-tls-agent
[ "$(on_target 'cat /var/lib/systemd/home/local.public')" = "$(cat /var/lib/systemd/home/storagetm-lender-*.public)" ]
wait_for 30 homectl activate alice
[ "$(cat /home/alice/hello)" = 'hello from the lender' ]
echo 'hello from the client' >/home/alice/answer
# What is not on the disk yet is lost when the connection is.
sync
