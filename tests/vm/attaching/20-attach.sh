# A disk is attached by the name of its machine, read to the last byte, and let go of, without nvme-cli.
lent --open --listen 192.168.50.1
storagetm attach lender/vda --json | tee /tmp/attached
disk=$(disk_of "$ro_nqn")
grep "\"path\": \"/dev/$disk\"" /tmp/attached
grep '"access": "read-only"' /tmp/attached
whole "/dev/$disk" "$ro_sha256"
[ "$(count_disks)" = 1 ]
storagetm attach "192.168.50.1/$ro_nqn" | grep 'attached already'
[ "$(count_disks)" = 1 ]
storagetm detach "/dev/$disk"
[ "$(count_disks)" = 0 ]
refused storagetm detach "/dev/$disk"
