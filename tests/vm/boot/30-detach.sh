# Lets go of every disk.
none() { [ "$(count_disks)" = 0 ]; }
nvme disconnect-all
wait_for 20 none
