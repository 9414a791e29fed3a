# Once paired, the machine is found by its name again, and its disk attached through an encrypted channel.
lent --listen 192.168.50.1 --pair
code=$(on_target 'cat /tmp/events' | grep '"event":"pairing"' | tail -n 1 | sed 's/.*"code":"\([^"]*\)".*/\1/')
echo "$code" | storagetm pair 192.168.50.1 --code-file -
wait_for 40 found
grep '^lender (storagetm-' /tmp/found
grep ', 12.6 MB, read-only$' /tmp/found
storagetm attach lender/vda | tee /tmp/attached
disk=$(disk_of "$ro_nqn")
whole "/dev/$disk" "$ro_sha256"
grep . "/sys/class/nvme/$(controller_of "$ro_nqn")/tls_key" | grep -v '^0*$'
storagetm detach lender
[ "$(count_disks)" = 0 ]
