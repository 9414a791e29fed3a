# The kernel ends the connection under the active home, with a shutdown of the controller: systemd-homed cleans up, and it can
# be activated again. A link that is lost: 65-lost.sh.
is active
for path in /sys/class/nvme/nvme*; do echo 1 >"$path/delete_controller"; done
wait_for 60 is absent
attach_home
wait_for 30 homectl activate alice
[ "$(cat /home/alice/answer)" = 'hello from the client' ]
