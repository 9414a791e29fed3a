# The printed line for all disks attaches all of them; disconnect-all leaves none.
eval "$connect_all"
for nqn in "$ro_nqn" "$rw_nqn" "$io_nqn"; do
    wait_for 20 has_disk "$nqn"
    live "$nqn"
done
[ "$(count_disks)" = 3 ]
nvme disconnect-all
wait_for 20 refused ls -d /sys/class/nvme/nvme*
