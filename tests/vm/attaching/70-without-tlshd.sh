# Without tlshd, attach starts what does the handshakes, those of later connections too, until the disk is detached.
kill "$(pidof tlshd)"
ro_nqn=$(nqn_of /dev/vda)
storagetm attach lender/vda
disk=$(disk_of "$ro_nqn")
whole "/dev/$disk" "$ro_sha256"
runs_agent() { grep -l 'tls-agen[t]' /proc/[0-9]*/cmdline; }
runs_agent
controller=$(controller_of "$ro_nqn")
echo 1 >"/sys/class/nvme/$controller/reset_controller"
is_live() { [ "$(cat "/sys/class/nvme/$controller/state")" = live ]; }
wait_for 40 is_live
whole "/dev/$disk" "$ro_sha256"
storagetm detach lender
[ "$(count_disks)" = 0 ]
has_ended() { ! runs_agent; }
wait_for 90 has_ended
