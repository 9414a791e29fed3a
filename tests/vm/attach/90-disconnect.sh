# The host lets go: the disk is gone.
attach "$ro_nqn" "$ro_line"
nvme disconnect -n "$ro_nqn" | grep 'disconnected 1 controller'
wait_for 30 gone "$ro_nqn"
